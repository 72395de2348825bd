"""The command line finds the studies, and says what is wrong in one line."""

from __future__ import annotations

import dataclasses
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.__main__ import load, main, names

ROOT = Path(__file__).parents[2]


def test_every_file_of_the_studies_folder_is_a_study(capsys: pytest.CaptureFixture[str]):
    files = {file.stem.replace("_", "-") for file in (ROOT / "experiments" / "studies").glob("*.py")} - {"--init--"}
    assert set(names()) == files
    assert main([]) == 0
    listed = capsys.readouterr().out
    for name in files:
        study = load(name)
        assert study.Config.__dataclass_params__.frozen
        assert all(field.name in study.Config.__doc__ for field in dataclasses.fields(study.Config))
        assert name in listed


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["dmo"], "did you mean 'demo'?"),
        (["nothing-like-it"], "choose from"),
        (["demo", "--seds", "3"], "did you mean --seeds?"),
        (["demo", "--seeds", "many"], "--seeds"),
        (["demo", "--seeds", "0"], "--seeds 0: give a number of at least 1"),
        (["finetune"], "missing --model, --train, --out"),
        (["finetune", "--model", "m", "--train", "t", "--out", "o", "--reset", "zeros"], "'kaiming', 'gaussian', 'orthogonal'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_wrong_command_line_is_one_line_and_exit_code_2(arguments, words, capsys: pytest.CaptureFixture[str]):
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert words in said.err
    assert said.err.count("\n") == 1


@pytest.mark.parametrize("name", names())
def test_help_names_every_option(name: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    assert stop.value.code == 0
    said = capsys.readouterr().out
    for field in dataclasses.fields(load(name).Config):
        inner = field.default_factory() if field.default_factory is not dataclasses.MISSING else None
        options = [f.name for f in dataclasses.fields(inner)] if dataclasses.is_dataclass(inner) else [field.name]
        assert all("--" + option.replace("_", "-") in said for option in options)


def test_help_loads_no_heavy_library():
    code = "import sys, experiments.__main__ as cli; [cli.load(n) for n in cli.names()]; print('torch' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "False"


def test_studies_start_without_a_word_of_libraries_that_they_do_not_use():
    """bitsandbytes, where PEFT finds it, misses a kernel on some machines and says so through its logger."""
    from bitsandbytes.backends.cpu import ops

    assert not ops.logger.isEnabledFor(logging.WARNING)
