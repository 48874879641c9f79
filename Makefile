# Two commands: `make demo` shows it, `make test` proves it. Both install into .venv first.
# `make docs` builds the guide, docs/, to build/docs.

PYTHON ?= python3
BIN := .venv/bin
# Processes of the tests, of one thread each.
WORKERS ?= 2

.PHONY: demo test check docs package clean

demo: .venv/installed
	$(BIN)/python scripts/demo.py

test: check
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile \
		--cov --cov-report=term:skip-covered --cov-fail-under=90

check: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

docs: .venv/installed
	$(BIN)/python scripts/docs.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# Before a release: the distributions, and the wheel in fresh environments, with torch in one.
package: .venv/installed
	$(BIN)/python -m pytest tests/package tests/package/check_cpu.py

clean:
	rm -rf .venv .venv-triton build

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		-c constraints.txt -e '.[cpu,test]'
	touch $@
