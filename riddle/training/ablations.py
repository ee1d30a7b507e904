"""The ablations of section 4.6: the encryptor trained anew from a named configuration, one thing changed.

    python -m riddle.training.ablations --preset mobile --variant nodiv --codes codes.npy --minutes 20 \
        --out results/runs/nodiv
    python -m riddle.training.publish --preset mobile --encryptor encryptor_nodiv=results/runs/nodiv

Every other option is one of riddle.training.encryptor and goes there as it stands. Give all variants the same: the
record of a run (ablation.json, and the metadata of its weights) lets Table 5 say when they differ.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from accelerate import PartialState

from riddle import config
from riddle.files import sha256, write_text
from riddle.training import encryptor
from riddle.weights import load_metadata, load_tensors, save_tensors

RECORD = "ablation"  # <out>/ablation.json, and the key of the weights' metadata
# files: recorded by hash, not by path
_PLACES = ("codes", "val_codes", "generator", "encoder", "parser", "start", "weights_json", "code_judge")


@dataclass(frozen=True)
class Ablation:
    """One row of Table 5: what distinguishes it from the full method."""

    label: str  # as in the paper
    datafree: bool = False  # codes drawn from the mapping network (section 3.3)
    arch: str = "transformer"  # "mlp": three fully connected layers; "coupling": its own inverse, ours
    diversity: bool = True  # L_div in eq. 5

    def arguments(self) -> list[str]:
        """Its options for riddle.training.encryptor."""
        chosen = ["--arch", self.arch]
        return chosen + ["--datafree"] * self.datafree + ["--no-div"] * (not self.diversity)


# Keyed as in riddle.runs.VARIANTS, in the order of Table 5, whose controls need no training.
ABLATIONS = {
    "datafree": Ablation("without data", datafree=True),
    "mlp": Ablation("without transformer", arch="mlp"),
    "nodiv": Ablation("without identity diversity loss", diversity=False),
    "riddle": Ablation("full"),
    "coupling": Ablation("RotationCoupling (ours)", arch="coupling"),
}


def record_of(variant: str, settings: argparse.Namespace) -> dict:
    """Everything that made a variant: its configuration, what all variants share, hashes of the files read.

    settings: as riddle.training.encryptor parses them. Raises FileNotFoundError for a file that is not there.
    """
    shared = {k: v for k, v in vars(settings).items() if k not in ("out", "datafree", "arch", "no_div", *_PLACES)}
    shared = {k: str(v) if v == float("inf") else v for k, v in shared.items()}  # JSON has no infinity
    files = {}
    for name in _PLACES:
        path = getattr(settings, name)
        if path and not Path(path).is_file():
            raise FileNotFoundError(f"--{name.replace('_', '-')}: {path} does not exist; give the file's path")
        if not path and name in ("generator", "encoder", "parser"):
            path = config.bundled_folder("zoo") / settings.preset / f"{name}.safetensors"
        files[name] = sha256(Path(path))[:12] if path and Path(path).is_file() else None
    return {"variant": variant, **asdict(ABLATIONS[variant]), "shared": shared, "files": files}


def claim_folder(out: Path, record: dict) -> None:
    """Write a run's record into its folder before it starts. Raises ValueError where another run's lies there."""
    path = out / f"{RECORD}.json"
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        if differing := sorted(k for k in record if before.get(k) != record[k]):
            raise ValueError(
                f"{path} is of another run ({', '.join(differing)} differ); "
                "resume with the same options, or choose another --out"
            )
        return
    if (out / "state.pt").exists():
        raise ValueError(f"{out} holds a run that no configuration made; choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(record, indent=1) + "\n")


def parse_arguments(argv: list[str] | None) -> tuple[str, argparse.Namespace, list[str]]:
    """The variant, the encryptor's settings, and the words that give them."""
    p = argparse.ArgumentParser(
        description=__doc__,
        epilog=f"The options of riddle.training.encryptor:\n\n{encryptor.command_line().format_help()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    p.add_argument("--variant", required=True, choices=ABLATIONS)
    a, shared = p.parse_known_args(argv)
    given = encryptor.parse_arguments(["--codes", "-", *shared])  # some codes: a data-free variant needs none
    if given.datafree or given.no_div or given.arch != ABLATIONS["riddle"].arch:
        p.error(f"--datafree, --arch and --no-div are decided by --variant {a.variant}; leave them out")
    words = [*shared, *ABLATIONS[a.variant].arguments()]
    return a.variant, encryptor.parse_arguments(words), words


def main(argv: list[str] | None = None) -> dict:
    """Train a variant; its record goes with the weights. Returns what riddle.training.encryptor.main returns."""
    variant, settings, words = parse_arguments(argv)
    out, record, process = Path(settings.out), record_of(variant, settings), PartialState()
    with process.main_process_first():
        claim_folder(out, record)
    last = encryptor.main(words)
    if process.is_main_process:
        weights = out / "encryptor.safetensors"
        about = load_metadata(weights) | {RECORD: json.dumps(record)}
        save_tensors(weights, load_tensors(weights), about)
    return last


if __name__ == "__main__":
    main()
