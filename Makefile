# Two commands for everybody: `make demo` and `make test`. Both create the environment (.venv) when it is not there.
PYTHON ?= python3
BIN := .venv/bin

# The lower bound that pyproject.toml gives for transformers.
OLDEST := $(shell sed -n 's/.*"transformers>=\([0-9.]*\),.*/\1/p' pyproject.toml)

.PHONY: demo test test-oldest lint types format clean

# The environment is made anew when its requirements change. uv installs in seconds what pip takes minutes for.
.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet "uv>=0.7"
	$(BIN)/uv pip install --quiet --python $(BIN)/python --editable ".[dev]"
	touch $@

demo: .venv/installed  ## caption examples/ with the shipped checkpoint and write demo.html
	$(BIN)/python scripts/demo.py

test: .venv/installed  ## every test; those whose needs are not met skip with a reason
	$(BIN)/python -m pytest

.venv-oldest/installed: pyproject.toml
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet "uv>=0.7"
	.venv-oldest/bin/uv pip install --quiet --python .venv-oldest/bin/python --editable ".[dev]" transformers==$(OLDEST)
	touch $@

test-oldest: .venv-oldest/installed  ## what depends on transformers, with the oldest that is allowed
	.venv-oldest/bin/python -m pytest --ignore=tests/data --ignore=tests/metrics --ignore-glob="tests/test_*image*.py"

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/installed
	$(BIN)/ty check vlm_caption scripts benchmarks

format: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv .venv-oldest demo.html
