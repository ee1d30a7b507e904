"""Utility of protected faces (Table 3): their boxes, landmarks, pose, and openness of eyes and mouth.

Landmarks (N, 68, 2) are dlib's, x before y, y downwards; rows of NaN stand for faces that were not found, and every
measure of them is NaN.
"""

from __future__ import annotations

import numpy as np

# A rough head in millimetres, an average adult's proportions: x to the picture's right, y down, z away from the
# viewer; the origin lies between the eyes. Differences of poses depend little on it.
HEAD = {
    36: (-44, 0, 28), 45: (44, 0, 28),  # outer corners of the eyes
    39: (-16, 0, 18), 42: (16, 0, 18),  # inner corners
    30: (0, 40, -20), 33: (0, 48, -2),  # tip of the nose, its base
    48: (-25, 68, 10), 54: (25, 68, 10),  # corners of the mouth
    8: (0, 112, 8),  # chin
}  # fmt: skip
_PLACES = np.array(list(HEAD))
_MODEL = np.array(list(HEAD.values()), np.float64)


def box_distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Mean absolute difference of the four numbers of boxes (N, 4) x1, y1, x2, y2: (N,)."""
    return np.abs(np.asarray(a, np.float64) - b).mean(-1)


def landmark_distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Mean absolute difference of the coordinates of corresponding points (N, K, 2): (N,)."""
    return np.abs(np.asarray(a, np.float64) - b).mean((-2, -1))


def head_rotation(landmarks: np.ndarray) -> np.ndarray:
    """Rotation (N, 3, 3) of the head, by the scaled orthographic projection of `HEAD` that fits best.

    The affine fit's two rows are replaced by the nearest orthonormal ones; the third is their cross product.
    """
    landmarks = np.asarray(landmarks, np.float64)
    seen = landmarks[:, _PLACES]
    seen = seen - seen.mean(1, keepdims=True)
    affine = np.linalg.pinv(_MODEL - _MODEL.mean(0)) @ seen  # (N, 3, 2)
    found = np.isfinite(affine).all((1, 2))
    out = np.full((len(landmarks), 3, 3), np.nan)
    u, _, vt = np.linalg.svd(affine[found], full_matrices=False)
    rows = (u @ vt).swapaxes(1, 2)
    out[found] = np.concatenate([rows, np.cross(rows[:, 0], rows[:, 1])[:, None]], axis=1)
    return out


def pose_difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Angle in degrees of the rotation between two heads, from landmarks (N, 68, 2) and (N, 68, 2): (N,)."""
    between = head_rotation(a).swapaxes(1, 2) @ head_rotation(b)
    return np.degrees(np.arccos(np.clip((np.trace(between, axis1=1, axis2=2) - 1) / 2, -1, 1)))


def eye_openness(landmarks: np.ndarray) -> np.ndarray:
    """Height of the eyes' opening over their width, mean of both: (N,). Soukupova and Cech, 2016."""
    ratios = []
    for first in (36, 42):
        p = np.asarray(landmarks, np.float64)[:, first : first + 6]
        height = np.linalg.norm(p[:, 1] - p[:, 5], axis=1) + np.linalg.norm(p[:, 2] - p[:, 4], axis=1)
        ratios.append(height / (2 * np.linalg.norm(p[:, 0] - p[:, 3], axis=1)))
    return np.mean(ratios, axis=0)


def mouth_openness(landmarks: np.ndarray) -> np.ndarray:
    """Mean gap between the lips' inner contours over the inner mouth's width: (N,)."""
    p = np.asarray(landmarks, np.float64)[:, 60:68]
    gaps = np.mean([np.linalg.norm(p[:, i] - p[:, 8 - i], axis=1) for i in (1, 2, 3)], axis=0)
    return gaps / np.linalg.norm(p[:, 0] - p[:, 4], axis=1)
