"""Recipes of the trainings: one word in the place of many options."""

import argparse
import importlib
import re
import tomllib

import pytest

from riddle.training import ablations, encryptor, recipe


def parser():
    p = argparse.ArgumentParser()
    p.add_argument("--out", required=True)
    p.add_argument("--lr", type=float, default=1.0)
    p.add_argument("--weight", action="append", default=[])
    p.add_argument("--no-div", action="store_true")
    return p


def test_options_of_the_command_line_come_after_those_of_the_recipe(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('[part]\nout = "here"\nlr = 3e-4\nweight = ["a=1", "b=2"]\nno-div = true\n')
    a = recipe.parse(parser(), "part", ["--recipe", str(path), "--lr", "0.5", "--weight", "a=3"])
    assert (a.out, a.lr, a.weight, a.no_div) == ("here", 0.5, ["a=1", "b=2", "a=3"], True)
    plain = recipe.parse(parser(), "part", ["--out", "there"])
    assert (plain.out, plain.lr, plain.weight, plain.no_div, plain.recipe) == ("there", 1.0, [], False, None)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "does not exist"),
        ("out = ", "no valid TOML"),
        ("[other]\n", r"no table \[part\]"),
        ('[part]\nout = "x"\nspeed = 3\n', "--speed 3"),
        ('[part]\nout = "x"\nlr = "fast"\n', "invalid float value: 'fast'"),
    ],
)
def test_a_bad_recipe_says_why(tmp_path, capsys, text, said):
    path = tmp_path / "bad.toml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SystemExit):
        recipe.parse(parser(), "part", ["--recipe", str(path)])
    error = capsys.readouterr().err
    assert re.search(said, error) and ("invalid float" in error or str(path) in error)


def test_every_table_of_every_recipe_fits_its_module(monkeypatch):
    """Each module reads its table; what happens after the command line does not happen here."""
    parse = recipe.parse

    class Read(Exception):
        pass

    def stop(p, section, argv):
        raise Read(parse(p, section, argv))

    monkeypatch.setattr(recipe, "parse", stop)
    for path in recipe.FOLDER.glob("*.toml"):
        for section, table in tomllib.loads(path.read_text()).items():
            module = importlib.import_module(f"riddle.training.{section}")
            with pytest.raises(Read) as read:
                module.main(["--recipe", path.stem])
            for name, value in table.items():
                assert getattr(read.value.args[0], name.replace("-", "_")) == value, (section, name)


def test_variants_take_the_recipe_too():
    variant, settings, words = ablations.parse_arguments(["--variant", "mlp", "--recipe", "mobile", "--out", "there"])
    assert (variant, settings.arch, settings.out, settings.blend) == ("mlp", "mlp", "there", 0.7)
    assert encryptor.parse_arguments(words).steps == settings.steps == 20300
