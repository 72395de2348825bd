"""How the site is built: `make docs` runs Sphinx over this folder, with every warning an error."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE / "_extensions")]  # the packages as they lie in the checkout, before any installed

import fwlora  # noqa: E402 - after the path

project = "fwlora"
author = "The fwlora authors"
copyright = author
version = release = fwlora.__version__

extensions = [
    "backticks",                       # ours: single backticks in docstrings
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx.ext.mathjax",
    "sphinx.ext.doctest",
    "sphinx_proof",
    "sphinx_gallery.gen_gallery",
]  # fmt: skip
# _build is output; the gallery's sources become pages of auto_gallery.
exclude_patterns = ["_build", "_extensions", "gallery", "auto_gallery/*.py"]
nitpicky = True  # a reference that leads nowhere is a warning, and so an error
# "alias of ...", which autodoc writes itself
nitpick_ignore_regex = [("py:class", r"torch\.optim\.adamw\.AdamW|collections\.abc\.Callable|numpy\.(ndarray|dtype|float64)")]
default_role = "backtick"  # `Name` is a link where the site has a Name, and code where it has none
suppress_warnings = ["config.cache"]
highlight_language = "none"  # a formula in a docstring is not Python; doctests are highlighted all the same

# Markdown
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence", "deflist"]
myst_heading_anchors = 4  # README's links to its own headings, in pages that include it
myst_dmath_double_inline = True

# Docstrings: Google's style; types stand in the signatures
autodoc_default_options = {"members": True}
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_class_signature = "mixed"
autodoc_preserve_defaults = True  # Every(500), not <fwlora.rules.knots.Every object at ...>
autodoc_type_aliases = {"Array": "theory.points.Array"}  # not ndarray[tuple[Any, ...], dtype[float64]]
python_maximum_signature_line_length = 88
python_use_unqualified_type_names = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # "Attributes:" as fields: an attribute has one entry
napoleon_use_rtype = False
viewcode_line_numbers = True

# Formulas: MathJax is bundled (fetch_mathjax.py), so that pages read the same from a disk without a network
mathjax_path = "mathjax/tex-svg-full.js"
mathjax3_config = {
    "tex": {
        "macros": {
            "R": r"\mathbb{R}",
            "E": r"\mathbb{E}",
            "inner": [r"\left\langle #1, #2 \right\rangle", 2],
            "norm": [r"\left\lVert #1 \right\rVert", 1],
            "argmin": r"\mathop{\mathrm{argmin}}",
        }
    },
    # Nothing is loaded on demand: a menu's accessibility tools would be.
    "options": {"enableMenu": False},
}

# Gallery: run at build time; an example that fails fails the build
sphinx_gallery_conf = {
    "examples_dirs": "gallery",
    "gallery_dirs": "auto_gallery",
    "filename_pattern": r"/plot_",
    "within_subsection_order": "FileNameSortKey",
    "abort_on_example_error": True,
    "download_all_examples": False,
    "show_memory": False,
    "show_signature": False,
    "min_reported_time": 10_000,  # no times on pages: they are of whoever built the site
    "write_computation_times": False,
    "reset_modules": ("matplotlib", "gallery_style.apply"),
    "matplotlib_animations": False,
}

html_theme = "furo"
html_title = f"fwlora {release}"
html_static_path = ["_static", "_build/static"]
html_css_files = ["narrow.css"]
html_copy_source = False
html_show_sphinx = False
