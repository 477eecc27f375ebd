"""A setting is declared once, in `TrainConfig`: the commands' options, documentation and errors follow."""

import dataclasses
import inspect

import pytest
import typer
from support.trainings import OPTIONS, make_pictures

from pconv_ext.inpainting._random import Stream
from pconv_ext.inpainting.cli import app, run
from pconv_ext.inpainting.training.setting import fields
from pconv_ext.training import TrainConfig

FIELDS = {field.name: field for field in dataclasses.fields(TrainConfig)}
#: What commands take beside the settings.
OWN = {
    "train": {"output", "resume", "device", "workers", "backend"},
    "ablate": {"only", "output", "lpips", "no_lpips", "limit", "device", "workers", "backend"},
}
WRONG = [
    ({"batch_size": 0}, "{batch_size} must be an int of at least 1, got 0"),
    ({"lr": -1.0}, "{lr} must be above 0 and at most 1e30, got -1"),
    ({"weight_decay": -1.0}, "{weight_decay} must be at least 0, got -1"),
    ({"patience": -1}, "{patience} must be an int of at least 0, got -1"),
    ({"holes": "round"}, "{holes} must be one of 'rectangle', 'irregular', 'mixed', got 'round'"),
    ({"save_every": 0}, "{save_every} must be an int of at least 1, got 0"),
    ({"seed": -1}, "{seed} must be an int in [0, 18446744073709551615), got -1"),
    ({"weights": {"stile": 0.0}}, "{weights} may have the names avail, missing, perceptual, style"),
    ({"invert_mask": True}, "{invert_mask} is about the pictures of {masks}"),
]


def parameters(command):
    return {one.name: one for one in typer.main.get_command(app).commands[command].params}


@pytest.mark.parametrize("command", ["train", "evaluate", "ablate", "inpaint", "serve"])
def test_every_option_has_help(command):
    assert all(one.help for one in parameters(command).values())


@pytest.mark.parametrize(("command", "without"), [("train", set()), ("ablate", {"weights"})])
def test_options_are_the_settings(command, without):
    options = parameters(command)
    assert options.keys() - OWN[command] == FIELDS.keys() - without
    for name in FIELDS.keys() - without - {"data"}:
        assert options[name].opts == ["--" + name.replace("_", "-")]
        assert not options[name].required


def test_options_tell_the_defaults():
    for name, option in parameters("train").items():
        default = FIELDS[name].default if name in FIELDS else None
        if isinstance(default, (int, float, str)) and default is not False:
            assert option.help.endswith(f" (default: {default})")
    assert parameters("train")["weights"].help.endswith(
        "(default: avail=1 missing=6 perceptual=0.01 style=120 avail_l1=0 missing_l1=0)"
    )
    assert parameters("train")["kernel_sizes"].help.endswith("(default: 3,5,7)")


def test_documentation_has_every_setting():
    told = inspect.getdoc(TrainConfig).partition("Attributes:\n")[2]
    for name, field in fields(TrainConfig).items():
        assert f"\n    {name}: {field.setting.help.split()[0]} " in f"\n{told}".replace("{data}", "data")
    assert "--" not in told


def options_of(settings):
    for name, value in settings.items():
        option = "--" + name.replace("_", "-")
        if value is True:
            yield option
        elif isinstance(value, dict):
            yield from (f"{option}={key}={one}" for key, one in value.items())
        else:
            yield f"{option}={value}"


@pytest.mark.parametrize(("settings", "expected"), WRONG, ids=lambda value: str(value)[:30])
def test_errors_name_what_was_given(tmp_path, capsys, settings, expected):
    """The option where it was one, the argument where it was that; a command leaves nothing behind."""
    names = {name: "--" + name.replace("_", "-") for name in FIELDS}
    with pytest.raises(SystemExit):
        run(["train", str(tmp_path), "-o", str(tmp_path / "run"), *options_of(settings)])
    assert capsys.readouterr().err.startswith(f"pconv-ext: train: {expected.format(**names)}")
    with pytest.raises(ValueError, match="TrainConfig: ") as error:
        TrainConfig("photos", **settings)
    assert str(error.value).startswith(f"TrainConfig: {expected.format(**{name: name for name in FIELDS})}")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--width=0"], "train: --width must be an int of at least 1"),
        (["--depth=1"], "train: --depth must be at least 2 and --msfef-stages from 0 to depth"),
        (["--kernel-sizes=3,4"], "train: --kernel-sizes must be distinct odd ints"),
        (["--kernel-sizes=3,5/3"], "train: --kernel-sizes must be ints, or one sequence of ints"),
        (["--device=abacus"], "train: --device must be one that torch can use here"),
    ],
)
def test_errors_of_the_parts_name_options(tmp_path, capsys, arguments, expected):
    make_pictures(tmp_path)
    with pytest.raises(SystemExit):
        run(["train", str(tmp_path), *OPTIONS, "-o", str(tmp_path / "run"), *arguments])
    assert expected in capsys.readouterr().err


def test_streams_of_random_numbers_keep_their_numbers():
    """They are part of what a seed means: another number is another training."""
    assert {stream.name: stream.value for stream in Stream} == {
        "RECTANGLE": 1,
        "IRREGULAR": 2,
        "CROP": 3,
        "FOLDER_MASK": 4,
        "ORDER": 5,
        "MIXED": 6,
        "FLIP": 7,
    }
