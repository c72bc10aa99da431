# Two commands for users (demo, test), one for the longer proofs; each makes the environment it needs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Exact versions: a release elsewhere changes nothing here. `make constraints` makes the file.
# CONSTRAINTS= (empty) installs the newest of everything instead.
CONSTRAINTS ?= constraints.txt
INSTALL := $(BIN)/pip install --quiet $(CONSTRAINTS:%=--constraint %) --editable

.PHONY: venv demo test test-slow lint types docs constraints clean

venv: $(VENV)/.ready-to-train

demo: $(VENV)/.ready-to-train
	$(BIN)/python -m demo

test: lint types docs
	$(BIN)/python -m pytest -n 2

test-slow: $(VENV)/.ready-for-clusters
	$(BIN)/python -m pytest -n 2 -m slow --timeout 1200

lint: $(VENV)/.ready-to-develop
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/.ready-to-develop
	$(BIN)/mypy

# The documentation as a site, in build/site; a dead link is an error.
docs: $(VENV)/.ready-to-develop
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

# Versions held so far stay if they can; make constraints UPGRADE=--upgrade takes the newest.
constraints: $(VENV)/.ready-to-develop
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --all-extras --no-emit-index-url \
		--no-annotate --custom-compile-command "make constraints" $(UPGRADE) \
		--output-file constraints.txt setup.py

clean:
	rm -rf $(VENV) .demo build

$(VENV)/.ready-to-train: setup.py constraints.txt
	$(MAKE) --no-print-directory $(VENV)/bin/python
	$(INSTALL) ".[train]"
	touch $@

$(VENV)/.ready-to-develop: setup.py constraints.txt
	$(MAKE) --no-print-directory $(VENV)/bin/python
	$(INSTALL) ".[train,dev,docs]"
	touch $@ $(VENV)/.ready-to-train

$(VENV)/.ready-for-clusters: $(VENV)/.ready-to-develop
	$(INSTALL) ".[train,dev,docs,spark,onnx]"
	touch $@

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Quovadis needs Python 3.11 or later; name one: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
