"""What a user can get wrong at the command line."""

from __future__ import annotations


class UsageError(ValueError):
    """A wrong option or file: its message is one line that names the option, the value and the way out."""
