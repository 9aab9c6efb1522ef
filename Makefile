# Each target does its own set-up: a virtual environment with the tested versions.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet -c constraints.txt

.PHONY: help demo test test-compat lint bench scaling sim soak clean

help:
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

.stamp-test: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) -e ".[test]"
	@touch $@

.stamp-lint: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) -e ".[test,lint]"
	@touch $@

demo: .stamp-test  ## a census of the Python source on this machine
	$(BIN)/python examples/census.py $(ARGS)

test: .stamp-test  ## run the tests
	$(BIN)/python -m pytest tests

lint: .stamp-lint  ## style, types and layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

.stamp-compat: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-compat
	.venv-compat/bin/python -m pip install --quiet -c constraints.txt -e ".[test,compat]"
	@touch $@

test-compat: .stamp-compat  ## programs of other libraries, those that are large to install, too
	.venv-compat/bin/python -m pytest tests/compat $(ARGS)

soak: .stamp-test  ## ten minutes of graphs while workers are ended in every way
	$(BIN)/python tools/soak.py --minutes 10 $(ARGS)

scaling: .stamp-test  ## five minutes of growing and shrinking under load
	$(BIN)/python tools/scaling.py --minutes 5 $(ARGS)

sim: .stamp-test  ## ten thousand simulated clusters
	$(BIN)/shoal sim --seeds 0:10000 $(ARGS)

# The peers are installed for this alone, beside the rest.
.stamp-bench: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/python -m pip install --quiet -c constraints.txt -e ".[bench]"
	@touch $@

bench: .stamp-bench  ## shoal and its peers, the same work in one run
	.venv-bench/bin/python benchmarks/compare.py --output benchmarks/results $(ARGS)

clean:  ## remove what the other targets made
	rm -rf $(VENV) .venv-bench .venv-compat .stamp-* .mypy_cache .ruff_cache .pytest_cache
