# Two commands for everybody: `make demo` and `make test`. Both create the environment (.venv) when it is not there.
PYTHON ?= python3
BIN := .venv/bin

# The model, generation, checkpoints and training: what depends most on the versions of the libraries.
VERSION_TESTS := tests/test_environment.py tests/test_private_names.py tests/test_imports.py tests/model/test_loss.py \
	tests/model/test_projectors.py tests/model/test_modeling.py tests/model/test_generation.py \
	tests/model/test_processing.py tests/model/test_freezing.py tests/model/test_checkpoints.py \
	tests/model/test_remote_code.py \
	tests/features/test_features.py tests/training/test_training.py tests/data/test_readers.py

# $(call tests,FOLDER): two processes of one thread each take half the time of one. A file's tests stay together.
tests = OMP_NUM_THREADS=1 $(1)/bin/python -m pytest --numprocesses=2 --dist=loadfile

# Full checkpoints that one environment saves are loaded and run by another one, where there is one.
OTHER_PYTHON = $(if $(wildcard $(BIN)/python),VLM_CAPTION_OTHER_PYTHON=$(CURDIR)/$(BIN)/python)

# uv does not read pip's settings, and a mirror of the package index may be set only there.
INDEX := $(or $(UV_DEFAULT_INDEX),$(PIP_INDEX_URL),$(shell $(PYTHON) -m pip config get global.index-url 2>/dev/null))
ifneq ($(INDEX),)
export UV_DEFAULT_INDEX := $(INDEX)
endif

# For every Python and platform that we name, each package with its version and nothing else.
COMPILE := uv pip compile --quiet --upgrade --universal --python-version 3.11 --extra dev --no-annotate --no-header

# $(call environment,FOLDER,CONSTRAINTS,PYPROJECT): made anew, with no other versions than those in CONSTRAINTS, and a copy
# of it in FOLDER/installed. uv installs in seconds what pip takes minutes for.
define environment
	$(PYTHON) -m venv --clear $(1)
	$(1)/bin/python -m pip install --quiet --constraint constraints.txt uv
	$(1)/bin/uv pip install --quiet --python $(1)/bin/python --constraint $(2) --requirement $(3) --extra dev
	$(1)/bin/uv pip install --quiet --python $(1)/bin/python --no-deps --editable .
	cp $(2) $(1)/installed
endef

.PHONY: demo examples test docs constraints test-oldest test-newest newest-versions lint types format clean

.venv/installed: pyproject.toml constraints.txt
	$(call environment,.venv,constraints.txt,pyproject.toml)

# For what needs uv before there is an environment: `make constraints` mends constraints that cannot be installed.
$(BIN)/uv:
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt uv

demo: .venv/installed  ## caption examples/ with the shipped checkpoint and write demo.html
	$(BIN)/python scripts/demo.py

examples: .venv/installed  ## caption examples/ anew, in its README.md and in the picture of README.md
	$(BIN)/python examples/strip.py

test: .venv/installed  ## every test; those whose needs are not met skip with a reason
	$(call tests,.venv)

docs: .venv/installed  ## the pages and the reference, in site/; warnings are errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

constraints: | $(BIN)/uv  ## the newest versions that pyproject.toml allows, and the oldest
	$(BIN)/$(COMPILE) pyproject.toml --output-file constraints.txt
	$(BIN)/$(COMPILE) pyproject.toml --output-file constraints-oldest.txt --resolution lowest-direct

.venv-oldest/installed: pyproject.toml constraints-oldest.txt
	$(call environment,.venv-oldest,constraints-oldest.txt,pyproject.toml)

test-oldest: .venv-oldest/installed  ## the lower bounds of pyproject.toml
	$(OTHER_PYTHON) $(call tests,.venv-oldest) $(VERSION_TESTS)

# What the index has now, as if pyproject.toml had no upper bounds.
newest-versions: | $(BIN)/uv
	mkdir -p build/newest
	sed 's/,<[^"]*"/"/' pyproject.toml > build/newest/pyproject.toml
	$(BIN)/$(COMPILE) build/newest/pyproject.toml --output-file build/newest/constraints.txt

test-newest: newest-versions  ## what was released since `make constraints`, without the upper bounds of pyproject.toml
	cmp -s build/newest/constraints.txt .venv-newest/installed || $(MAKE) .venv-newest
	$(OTHER_PYTHON) $(call tests,.venv-newest) $(VERSION_TESTS)

.PHONY: .venv-newest
.venv-newest:
	$(call environment,.venv-newest,build/newest/constraints.txt,build/newest/pyproject.toml)

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: .venv/installed
	$(BIN)/ty check vlm_caption scripts benchmarks

format: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv .venv-oldest .venv-newest build site demo.html
