"""What can go wrong at the command line."""

from __future__ import annotations


class UsageError(ValueError):
    """A wrong option or file: its message is one line that names the option, the value and the way out."""


class Refuted(Exception):
    """A study measured what its claim excludes: a bug in the claim, the code or the constants. Its message says where."""
