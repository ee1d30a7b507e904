"""Table 5 (section 4.6): the ablations' rates and distances, and the training behind each."""

from __future__ import annotations

import json
from functools import partial

import pandas as pd

from riddle.evaluation import table1
from riddle.evaluation.rows import ABLATIONS, INVERTED, TABLE5, TABLE5_RELEASED, Row
from riddle.evaluation.table3 import distances
from riddle.evaluation.tables import FACES, PICTURES, Part
from riddle.presets import ALL_VARIANTS, CONTROLS, RELEASED
from riddle.weights import bundled_metadata


def trained(preset: str, variant: str) -> dict[str, str]:
    """A variant's training, from its weights' metadata: {} for weights that are absent or have none.

    Numbers of riddle.training.encryptor's metadata, and those that an ablation adds; a control: 0 steps.
    """
    if variant in CONTROLS:
        return {"steps done": "0"}
    about = bundled_metadata(preset, ALL_VARIANTS[variant].file)
    record, weights = (json.loads(about.get(k, "{}")) for k in ("ablation", "weights"))
    weights.pop("diversity", None)  # what a variant may change
    known = {k: about[k] for k in ("m", "n", "seed") if k in about} | {f"weight {k}": v for k, v in weights.items()}
    asked = {k: v for k, v in record.get("shared", {}).items() if k not in ("weight", "m", "n", "seed")}
    files = {k: v for k, v in record.get("files", {}).items() if k in ("generator", "parser")}
    done = {"steps done": about["steps"]} if "steps" in about else {}
    return {k: str(v) for k, v in (known | asked | files | done).items()}


def differences(preset: str) -> dict[str, str]:
    """{variant: how its training differs from the full method's beyond what it ablates}; '' where it does not.

    Variants without weights and controls are left out. The number of steps is no difference: within a budget of
    minutes each takes its own.
    """
    full, found = trained(preset, "riddle"), {}
    for variant in ABLATIONS:
        own = trained(preset, variant)
        if own and variant not in ("riddle", *CONTROLS):
            keys = sorted((set(full) | set(own)) - {"steps done"})
            pairs = [(k, own.get(k, "unknown"), full.get(k, "unknown")) for k in keys]
            found[variant] = "; ".join(f"{k} {mine} (full: {its})" for k, mine, its in pairs if mine != its)
    return found


def with_training(table: pd.DataFrame, preset: str) -> pd.DataFrame:
    """Table 5 with columns on the weights behind each row: variant, steps, trained otherwise."""
    variants = {label: variant for variant, label in ABLATIONS.items()} | {RELEASED.label: "released"}
    steps = {label: trained(preset, variant).get("steps done", "") for label, variant in variants.items()}
    differing = {ABLATIONS[variant]: how for variant, how in differences(preset).items()}
    columns = {"variant": variants, "steps": steps, "trained otherwise": differing}
    return table.assign(**{name: [known.get(m, "") for m in table.method] for name, known in columns.items()})


def _parts(wanted: tuple[Row, ...], sets: dict[str, str]) -> tuple[Part, ...]:
    pictures = partial(distances, sets=sets, halves=False)
    return table1.part(wanted), Part(PICTURES, pictures, ("photo", *sets.values()), ("dlib",), FACES)


PARTS = _parts(TABLE5, {INVERTED: "inverted", **{label: variant for variant, label in ABLATIONS.items()}})
RELEASED_PARTS = _parts(TABLE5_RELEASED, {RELEASED.label: "released"})  # beside them, for RELEASED_FOR
