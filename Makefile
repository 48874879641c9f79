# `make demo` exports three models. `make test` runs the checks and all tests. Both install the
# project into .venv first. `make quick` runs the checks and the tests not marked slow, without
# coverage. `make docs` builds the guide from docs/ to build/docs.

PYTHON ?= python3
BIN := .venv/bin
# Number of test processes. Each process has one thread.
WORKERS ?= 2

# Tests of one file share exports, so they run in one process. tests/conftest.py orders the files.
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

.PHONY: demo test quick covered fast check docs package clean

demo: .venv/installed
	$(BIN)/python scripts/demo.py

# Pyright uses one core: run it beside the tests, not before them.
test: .venv/installed
	$(MAKE) -j2 check covered

quick: .venv/installed
	$(MAKE) -j2 check fast

covered: .venv/installed
	$(PYTEST) --cov --cov-report=term:skip-covered --cov-fail-under=90

fast: .venv/installed
	$(PYTEST) -q -m "not slow"

check: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

docs: .venv/installed
	$(BIN)/python scripts/docs.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# Run this before a release. It tests the distributions, and the wheel in fresh environments. Two
# of these environments have torch: one with the tested versions, one with the lowest.
package: .venv/installed
	$(BIN)/python -m pytest tests/package tests/package/check_cpu.py

clean:
	rm -rf .venv .venv-triton build

.venv/installed: pyproject.toml constraints.txt
	rm -rf tsformer.egg-info  # an older one beside the sources hides the new metadata
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		-c constraints.txt -e '.[cpu,test]'
	touch $@
