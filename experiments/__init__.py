"""Experiments: `python -m experiments <study>`. They stand on fwlora and are not part of its wheel."""
