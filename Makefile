# `make run` and `make test` do all the set-up themselves; they need Python 3.11+, make and git.
PYTHON ?= $(firstword $(foreach v,3.11 3.12 3.13,$(shell command -v python$(v))) python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: run test check docs setup lock clean

run: setup
	$(BIN)/kdsearch run --budget-ms 10

test: setup
	$(BIN)/python -m pytest -m "not gpu"

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: setup
	$(BIN)/python -m sphinx -W -q -b html docs docs/_build

setup: $(STAMP)

$(STAMP): pyproject.toml requirements.lock.txt
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "uv>=0.9,<1"
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -r requirements.lock.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	touch $@

lock:
	$(BIN)/uv pip compile pyproject.toml --group dev --universal --no-header --no-annotate --quiet --output-file requirements.lock.txt

clean:
	rm -rf $(VENV) build dist docs/_build docs/_generated
