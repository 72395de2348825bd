"""`python -m experiments <study> [options]`: finds the studies by walking `experiments/studies/`.

A study is a file with a frozen dataclass `Config`, a function `run(config)`, and configs by name in `PRESETS`, from which
`--preset` takes the defaults; its docstring's first line describes it here. In its name, `_` is typed as `-`. A study that
finds what must not be, such as a violated theorem, raises `Refuted`.
"""

from __future__ import annotations

import difflib
import importlib
import io
import logging
import os
import pkgutil
import re
import sys
import warnings
from collections.abc import Sequence
from contextlib import redirect_stderr
from types import ModuleType
from typing import Any

import tyro

from experiments import studies
from experiments.errors import Refuted, UsageError

# PEFT brings in bitsandbytes, which says at every start, in every process, that a faster kernel is not installed.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

PROGRAM = "python -m experiments"
OPTIONS = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff)


def names() -> list[str]:
    """The studies' names."""
    return sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules(studies.__path__))


def load(name: str) -> ModuleType:
    """A study's module. Studies import what they need when they run, so this is quick."""
    return importlib.import_module(f"{studies.__name__}.{name.replace('-', '_')}")


def overview() -> str:
    """What is printed when no study is named."""
    lines = [f"usage: {PROGRAM} <study> [options]", "", "studies:"]
    lines += [f"  {name:<16} {(load(name).__doc__ or '').strip().splitlines()[0]}" for name in names()]
    return "\n".join([*lines, "", f"`{PROGRAM} <study> --help` lists a study's options."])


def parse(name: str, arguments: Sequence[str]) -> object:
    """A study's config from its command line.

    Args:
        name: the study.
        arguments: what followed its name.

    Returns:
        The study's `Config`.

    Raises:
        UsageError: an option is wrong.
        SystemExit: help was asked for.
    """
    module = load(name)
    preset, rest = _preset(name, arguments)
    about = f"{module.__doc__}\n\n--preset {'|'.join(module.PRESETS)} changes the defaults; an option beside it stands."
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            return tyro.cli(
                module.Config, default=preset, args=rest, prog=f"{PROGRAM} {name}", description=about, config=OPTIONS
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        raise UsageError(f"{_one_line(said.getvalue())} (see {PROGRAM} {name} --help)") from None


def _preset(name: str, arguments: Sequence[str]) -> tuple[Any, list[str]]:
    """The config that `--preset` names, None without it, and the other arguments."""
    known, rest, chosen = load(name).PRESETS, [], None
    waiting = iter(arguments)
    for argument in waiting:
        option, equals, value = argument.partition("=")
        if option != "--preset":
            rest.append(argument)
            continue
        chosen = value if equals else next(waiting, "")
        if chosen not in known:
            raise UsageError(f"--preset {chosen}: choose from {', '.join(known)}.")
    return (None if chosen is None else known[chosen]), rest


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a study.

    Args:
        arguments: the command line; None takes the process's own.

    Returns:
        The exit code: 0; 1 for a refuted claim; 2 for a wrong option or file.
    """
    name, *rest = [*(sys.argv[1:] if arguments is None else arguments), ""]
    if name in {"", "-h", "--help"}:
        print(overview())
        return 0
    try:
        if name not in names():
            near = difflib.get_close_matches(name, names(), n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(names())}."
            raise UsageError(f"there is no study {name!r}: {hint}")
        load(name).run(parse(name, rest[:-1]))
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Refuted as error:
        print(f"refuted: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `... --help | head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return 0


def _one_line(box: str) -> str:
    """The parser's framed message as one sentence: what is wrong and, where the parser has a guess, what was meant."""
    # Rules part the frame; where it is drawn in ASCII its title stands alone above the first one.
    parts: list[list[str]] = [[]]
    for line in box.splitlines():
        text = line.strip("│ ")
        if line.startswith("╭") or (text and not text.strip("─-╰╯")):
            parts.append([])
        elif text:
            parts[-1].append(text)
    message, *others = [[re.sub(r"\[/?bold\]", "", line) for line in part] for part in parts[1:]]
    if message[0].startswith("Missing"):
        return "missing " + ", ".join(line.split()[0] for line in message if line.startswith("--"))
    meant = re.search(r"Perhaps you meant:\s+(--[\w-]+)", "\n".join(line for part in others for line in part))
    return " ".join(message) + (f"; did you mean {meant[1]}?" if meant else "")


def _warning(message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None) -> str:
    """A warning for a user at a terminal: what is said, on a line of its own below a bar, and not where in the code."""
    return f"\nwarning: {message}\n"


if __name__ == "__main__":
    warnings.formatwarning = _warning
    sys.exit(main())
