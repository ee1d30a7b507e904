"""The numbers that the paper prints, table by table, to stand beside ours (Li et al., CVPR 2023)."""

from __future__ import annotations

# Systems as the paper names them, in its order; the keys are those of riddle.baselines.
SYSTEMS = {
    "riddle": "RiDDLE",
    "riddle-datafree": "RiDDLE data-free",
    "ciagan": "CIAGAN",
    "fit": "FIT",
    "personal": "Personal",
    "deepprivacy": "DeepPrivacy",
}
SYSTEM_OF = {name: key for key, name in SYSTEMS.items()}

# Table 1, identification rates on LFW: {(task, system): {judge: rate}}.
TABLE1_JUDGES = ("FaceNet CASIA", "FaceNet VGGFace2", "SphereFace")
TABLE1 = {
    (task, system): dict(zip(TABLE1_JUDGES, rates, strict=True))
    for task, system, *rates in (
        ("de-identification", "riddle", 0.016, 0.032, 0.025),
        ("de-identification", "riddle-datafree", 0.034, 0.037, 0.025),
        ("de-identification", "ciagan", 0.019, 0.034, 0.010),
        ("de-identification", "fit", 0.042, 0.072, 0.065),
        ("de-identification", "personal", 0.020, 0.042, 0.017),
        ("de-identification", "deepprivacy", 0.266, 0.184, 0.120),
        ("recovery", "riddle", 0.996, 0.998, 1.000),
        ("recovery", "riddle-datafree", 0.953, 0.949, 1.000),
        ("recovery", "fit", 0.967, 0.974, 1.000),
        ("recovery", "personal", 0.965, 0.965, 0.998),
    )
}

# Table 2, restored against original pictures, CelebA-HQ and FFHQ: {system: {metric: value}}.
TABLE2_METRICS = ("MSE", "LPIPS", "SSIM", "PSNR")
TABLE2 = {
    system: dict(zip(TABLE2_METRICS, values, strict=True))
    for system, *values in (
        ("fit", 0.005, 0.186, 0.934, 23.130),
        ("personal", 0.003, 0.220, 0.846, 26.391),
        ("riddle", 0.002, 0.043, 0.966, 26.499),
        ("riddle-datafree", 0.004, 0.277, 0.760, 25.483),
    )
}

# Table 3, fidelity and utility of de-identified faces, CelebA-HQ: {(metric, detector or ''): {system: value}}.
TABLE3 = {
    (metric, detector): dict(zip(SYSTEMS, values, strict=True))
    for metric, detector, *values in (
        ("FID", "", 15.389, 26.802, 32.611, 30.331, 25.715, 23.713),
        ("face detection", "mtcnn", 1.000, 1.000, 0.992, 1.000, 1.000, 1.000),
        ("face detection", "dlib", 0.991, 0.975, 0.937, 0.984, 0.992, 0.980),
        ("box distance", "mtcnn", 3.824, 5.720, 20.387, 7.879, 4.213, 4.654),
        ("box distance", "dlib", 1.700, 3.109, 15.476, 4.218, 2.726, 2.685),
        ("landmark distance", "mtcnn", 1.674, 3.252, 8.042, 3.572, 2.358, 3.280),
        ("landmark distance", "dlib", 1.512, 2.973, 8.930, 4.047, 2.459, 2.896),
    )
}

# Table 4, cosine with the original and KFFA in degrees: {(row, data set): (cosine, KFFA)}.
TABLE4_DATASETS = ("FFHQ", "CelebA-HQ", "LFW")
TABLE4 = {
    (row, dataset): pair
    for row, pairs in {
        "ciagan": ((0.039, 64.29), (0.068, 62.14), (0.050, 62.58)),
        "fit": ((0.104, 66.45), (0.147, 65.20), (0.125, 64.19)),
        "personal": ((0.192, 54.71), (0.187, 58.29), (0.205, 56.53)),
        "encrypted": ((0.038, 74.88), (0.056, 77.39), (0.058, 75.83)),
        "wrongly decrypted": ((0.052, 73.07), (0.054, 74.04), (0.028, 73.47)),
    }.items()
    for dataset, pair in zip(TABLE4_DATASETS, pairs, strict=True)
}

# Table 5, ablations: {variant: {metric: value}}.
TABLE5 = {
    variant: dict(zip(("de-identification", "recovery", "FID"), values, strict=True))
    for variant, *values in (
        ("without data", 0.034, 0.953, 26.802),
        ("without transformer", 0.018, 0.985, 22.704),
        ("without identity diversity loss", 0.025, 0.993, 25.816),
        ("full", 0.016, 0.996, 15.389),
    )
}
