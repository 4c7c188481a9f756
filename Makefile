# Every target sets up what it needs; that takes Python 3.11 or newer, make and git.
PYTHON ?= $(firstword $(foreach v,3.11 3.12 3.13,$(shell command -v python$(v))) python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

JOBS := 2
PYTEST := $(BIN)/python -m pytest -n $(JOBS)

.PHONY: setup run test test-all check docs image bench lock clean

run: setup
	$(BIN)/kdsearch run

test: setup
	$(PYTEST) -m "not gpu and not slow"

test-all: setup
	$(PYTEST) -m "not gpu"

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: setup
	$(BIN)/python -m sphinx -W -q -b html docs docs/_build

image: setup
	scripts/report_image.sh $(STUDY) $(NAME)

bench: setup
	$(BIN)/python -m benchmarks $(BENCH)

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
