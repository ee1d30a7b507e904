"""The paper's figures 1, 3, 4, 5 and 6: people as rows, blocks of columns, for drawing.face_table.

Every method that can be run stands in the same layout; notebook 12 draws them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

from riddle.drawing import Block
from riddle.figures import INTERVAL, estimate, provenance
from riddle.methods import Method, People, usable
from riddle.runs import Run

Sections = dict[str, list[Block]]


def _numbers(faces: torch.Tensor, *ks: int) -> torch.Tensor:
    """The same passwords for every person: (N, P)."""
    return torch.tensor([ks]).expand(len(faces), -1)


def qualitative(listed: Sequence[Method], faces: torch.Tensor, count: int = 8, seed: int = 0) -> dict[str, Sections]:
    """Figures 1, 3, 4, 5 and 6 of faces (N, 3, R, R) in [-1, 1], by every method that can be run.

    count: passwords in figure 5. A column has one password for all people, and figures share them. Raises
    ValueError where no RiDDLE can be run.
    """
    able = usable(listed)
    ours = [m for m in able if m.model is not None]
    if not ours:
        raise ValueError(f"no figure without an encryptor: {listed[0].reason}; train one or choose another preset")
    inverted = ours[0].model.synthesize(ours[0].model.invert(faces)).cpu()
    inputs = Block("", ("original", "inverted"), torch.stack([faces, inverted], 1))
    return {
        "figure1": {m.label: [inputs, *_encrypted_and_decrypted(m, faces, seed)] for m in ours},
        "figure3": {"": [inputs, *(Block("", (m.label,), _under(m, faces, seed, 0)) for m in able)]},
        "figure4": {"": [inputs, *(_recovered(m, faces, seed) for m in ours)]},
        "figure5": {
            m.label: [
                Block("", ("original",), faces[:, None]),
                Block("password", _titles(count), _under(m, faces, seed, *range(count))),
            ]
            for m in ours
        },
        "figure6": {"": [Block("", ("original",), faces[:, None]), *(_variety(m, faces, seed) for m in able)]},
    }


def _titles(count: int) -> tuple[str, ...]:
    return tuple(str(k + 1) for k in range(count))


def _under(method: Method, faces: torch.Tensor, seed: int, *ks: int) -> torch.Tensor:
    return method.protect(faces, _numbers(faces, *ks), seed)


def _encrypted_and_decrypted(method: Method, faces: torch.Tensor, seed: int) -> list[Block]:
    """Figure 1: two passwords; then the first undone by itself, and by two others."""
    opened = method.restore(faces, _numbers(faces, 0, 0, 0), _numbers(faces, 0, 2, 3), seed)
    return [
        Block("encrypted", ("password 1", "password 2"), _under(method, faces, seed, 0, 1)),
        Block("decrypted", ("right password",), opened[:, :1]),
        Block("decrypted", ("wrong 1", "wrong 2"), opened[:, 1:]),
    ]


def _recovered(method: Method, faces: torch.Tensor, seed: int) -> Block:
    """Figure 4: protected, and restored with the same password."""
    one = _numbers(faces, 0)
    pair = torch.cat([method.protect(faces, one, seed), method.restore(faces, one, one, seed)], 1)
    return Block(method.label, ("encrypted", "restored"), pair)


def _variety(method: Method, faces: torch.Tensor, seed: int, count: int = 3) -> Block:
    """Figure 6: several passwords; one column for a method that does not heed them."""
    if not method.heeds_passwords:
        return Block(method.label, ("any",), _under(method, faces, seed, 0))
    return Block(f"{method.label}, password", _titles(count), _under(method, faces, seed, *range(count)))


def distances(blocks: Sequence[Block]) -> dict[str, np.ndarray]:
    """Figure 1 in pixels: mean absolute difference of its columns to the inverted faces, 0 to 255, a person (N,)."""
    inputs, encrypted, right, wrong = (b.faces for b in blocks)
    columns = {"encrypted": encrypted, "right password": right, "wrong password": wrong}
    return {name: (faces - inputs[:, 1:]).abs().mean((1, 2, 3, 4)).numpy() * 127.5 for name, faces in columns.items()}


def table(sections: Sections, listed: Sequence[Method], run: Run, who: People) -> pd.DataFrame:
    """Figure 1 in numbers, a tidy line a method and column; a method that cannot be run has its reason."""
    shared = {"task": "qualitative", "metric": "mean absolute difference (0 to 255)", "against": "its inverted face"}
    lines = []
    for method in listed:
        here = shared | {"method": method.label, "n": len(who.names), "mean": np.nan, "low": np.nan, "high": np.nan}
        if method.label in sections:
            differences = distances(sections[method.label])
            lines += [here | {"picture": k} | estimate(values) for k, values in differences.items()]
        else:
            reason = method.reason or "it cannot be undone"
            lines.append(here | {"picture": "", "n": 0, "value": f"n/a: {reason}"})
    note = provenance(run, who, threshold_rule="", undetected_rule="", interval=INTERVAL)
    return pd.DataFrame(lines).assign(**note)
