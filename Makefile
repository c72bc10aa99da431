# Two commands for users (demo, test), one for the longer proofs; each makes the environment it needs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test test-slow lint types clean

demo: $(VENV)/.ready-to-train
	$(BIN)/python -m demo

test: lint types
	$(BIN)/python -m pytest -n 2

test-slow: $(VENV)/.ready-for-clusters
	$(BIN)/python -m pytest -n 2 -m slow --timeout 1200

lint: $(VENV)/.ready-to-develop
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/.ready-to-develop
	$(BIN)/mypy

clean:
	rm -rf $(VENV) .demo

$(VENV)/.ready-to-train: setup.py
	$(MAKE) --no-print-directory $(VENV)/bin/python
	$(BIN)/pip install --quiet --editable ".[train]"
	touch $@

$(VENV)/.ready-to-develop: setup.py
	$(MAKE) --no-print-directory $(VENV)/bin/python
	$(BIN)/pip install --quiet --editable ".[train,dev]"
	touch $@ $(VENV)/.ready-to-train

$(VENV)/.ready-for-clusters: $(VENV)/.ready-to-develop
	$(BIN)/pip install --quiet --editable ".[train,dev,spark,onnx]"
	touch $@

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
		{ echo "Quovadis needs Python 3.11 to 3.13; name one: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
