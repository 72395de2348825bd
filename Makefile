# Each target is the only command that a new machine needs: it makes .venv from the constraints first.
PYTHON ?= python3
PY := .venv/bin/python
STAMP := .venv/.installed
DOCS_STAMP := .venv/.documented
# One thread a process: the tests and the demo run processes side by side.
export OMP_NUM_THREADS := 1
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false

.PHONY: demo test test-long proofs docs lint clean

demo: $(STAMP)
	$(PY) -m experiments demo

test: lint
	$(PY) -m pytest -q -n 2 --dist worksteal

# What takes minutes, such as torch.compile with its own compiler.
test-long: $(STAMP)
	$(PY) -m pytest -q -m long

# Needs Coq 8.16 or later (Debian: apt-get install coq); `make test` runs the same where there is one.
proofs: $(STAMP)
	$(PY) -m theory.proofs

# The site, in docs/_build/html; a warning is an error, so each build reads every page: one that is not read again hides its warnings.
# MathJax comes once from npm, then everything is on the disk; an example of the gallery runs again when it has changed.
docs: $(DOCS_STAMP)
	$(PY) docs/fetch_mathjax.py
	rm -rf docs/_build/html docs/_build/doctrees
	$(PY) -m sphinx -W -n --keep-going -q -b html -d docs/_build/doctrees docs docs/_build/html

lint: $(STAMP)
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m basedpyright
	.venv/bin/lint-imports

$(STAMP): pyproject.toml constraints.txt
	test -x $(PY) || $(PYTHON) -m venv .venv
	$(PY) -m pip install -q -c constraints.txt --upgrade pip
	$(PY) -m pip install -q -c constraints.txt torch
	$(PY) -m pip install -q -c constraints.txt -e . --group dev
	touch $(STAMP)

$(DOCS_STAMP): $(STAMP)
	$(PY) -m pip install -q -c constraints.txt --group docs
	touch $(DOCS_STAMP)

clean:
	rm -rf .venv results dist docs/_build docs/auto_gallery
