"""Options of a training: fields of its configuration, set by a recipe and by the command line."""

import importlib
import re
import tomllib
from dataclasses import dataclass, field

import pytest

from riddle.baselines import BASELINES
from riddle.losses import PAPER_WEIGHTS
from riddle.presets import VARIANTS
from riddle.training import recipe
from riddle.training.encryptor import EncryptorConfig


@dataclass(frozen=True, kw_only=True)
class Config:
    out: str  # folder of the run
    variant: str = "riddle"
    lr: float = 1.0  # of Adam, 10 % of it at first
    steps: int = 10
    weights: dict[str, float] = field(default_factory=dict)
    bfloat16: bool | None = None

    def __post_init__(self):
        if self.steps < 0:
            raise ValueError("--steps is negative")


def parse(*words):
    return recipe.parse(Config, "part", "what it does", list(words))


def test_options_of_the_command_line_come_after_those_of_the_recipe(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('[part]\nout = "here"\nlr = 3e-4\nbfloat16 = false\nweights = { a = 1, b = 2 }\n')
    given = parse("--recipe", str(path), "--lr", "0.5", "--weights", "a=3")
    assert given == Config(out="here", lr=0.5, bfloat16=False, weights={"a": 3.0, "b": 2.0})
    assert parse("--out", "there", "--bfloat16") == Config(out="there", bfloat16=True)


def test_a_variant_has_a_table_of_its_own_after_the_shared_one(tmp_path):
    path = tmp_path / "mine.toml"
    lines = ('[part]\nout = "here"\nlr = 3\nweights = { a = 1, b = 2 }', "[part.mlp]\nlr = 4\nweights = { a = 3 }\n")
    path.write_text("\n".join(lines))
    assert parse("--recipe", str(path)) == Config(out="here", lr=3.0, weights={"a": 1.0, "b": 2.0})
    own = Config(out="here", variant="mlp", lr=4.0, weights={"a": 3.0, "b": 2.0})
    assert parse("--recipe", str(path), "--variant", "mlp") == own
    assert parse("--recipe", str(path), "--variant", "mlp", "--lr", "5").lr == 5
    path.write_text(path.read_text().replace("[part]", '[part]\nvariant = "mlp"'))
    assert parse("--recipe", str(path)) == own


def test_what_stands_behind_a_field_is_the_help_of_its_option(capsys):
    with pytest.raises(SystemExit):
        parse("--help")
    shown = " ".join(capsys.readouterr().out.split())
    assert "--lr LR of Adam, 10 % of it at first [1.0]" in shown and "--out OUT folder of the run" in shown


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "does not exist"),
        ("out = ", "no valid TOML"),
        ("[other]\n", r"no table \[part\]"),
        ('[part]\nout = "x"\nspeed = 3\n', r"--speed 3.*\[part\] of"),
        ('[part]\nout = "x"\nlr = "fast"\n', "invalid float value: 'fast'"),
        ('[part]\nout = "x"\nweights = { a = "b" }\n', "NAME=NUMBER is wanted, got 'a=b'"),
        ('[part]\nout = "x"\nsteps = -1\n', "--steps is negative"),
        ("[part]\n", "required: --out"),
    ],
)
def test_a_bad_recipe_says_why(tmp_path, capsys, text, said):
    path = tmp_path / "bad.toml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SystemExit):
        parse("--recipe", str(path))
    assert re.search(said, capsys.readouterr().err)


class Read(Exception):
    pass


def test_every_table_of_every_recipe_fits_its_module(monkeypatch):
    """Each module reads its table, and its variants' own; what follows the command line does not happen here."""
    parse = recipe.parse

    def stop(*words):
        raise Read(parse(*words))

    monkeypatch.setattr(recipe, "parse", stop)
    for path in recipe.FOLDER.glob("*.toml"):
        for section, table in tomllib.loads(path.read_text()).items():
            module = importlib.import_module(f"riddle.{'baselines' if section in BASELINES else 'training'}.{section}")
            own = {name: table.pop(name, {}) for name in VARIANTS}
            asked = [name for name, v in VARIANTS.items() if v.trained] if section == "encryptor" else ["riddle"]
            for variant in asked:
                words = ["--variant", variant] if section == "encryptor" else []
                with pytest.raises(Read) as read:
                    module.main(["--recipe", path.stem, *words])
                wanted = table | own[variant]
                if "weights" in table:
                    wanted["weights"] = table["weights"] | own[variant].get("weights", {})
                for name, value in wanted.items():
                    assert getattr(read.value.args[0], name.replace("-", "_")) == value, (section, variant, name)


@pytest.mark.parametrize("preset", ["ffhq256", "ffhq1024"])
def test_the_papers_recipes_have_the_papers_values_and_nothing_of_ours(preset):
    config = recipe.parse(EncryptorConfig, "encryptor", "", ["--recipe", preset])
    given = [getattr(config, k) for k in ("preset", "steps", "batch", "m", "n", "lpips")]
    assert given == [preset, 200_000, 8, 2, 2, "vgg"] and config.loss_weights == PAPER_WEIGHTS
    ours = ("helper", "helper_only", "blend", "shrink", "linked", "apart", "pixels")
    assert not any(getattr(config, k) for k in ours) and config.batch % config.accumulate == 0


def test_every_module_of_training_says_what_it_takes(capsys):
    for path in sorted(recipe.FOLDER.parent.glob("*.py")):
        if "def main(" in path.read_text():
            with pytest.raises(SystemExit) as end:
                importlib.import_module(f"riddle.training.{path.stem}").main(["--help"])
            assert end.value.code == 0 and "--preset" in capsys.readouterr().out, path.stem
