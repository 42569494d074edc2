# make demo   run the main job with the bundled models; needs Python 3.11 and nothing else
# make test   run the test suite
# make lint   ruff, mypy --strict and the import contracts
# make clean  remove the environment, the caches and the demo's results
#
# Each target makes its own environment in $(VENV) and installs only when pyproject.toml or
# constraints.txt changed since the last time.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
RUNS ?= runs
PYTEST_ARGS ?= --numprocesses auto --dist worksteal

BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test lint clean
.DELETE_ON_ERROR:

# All 3,916 B2 and 3,916 L1_0 compounds of 89 elements, and 22,968 perovskite oxides, sulfides and
# fluorides. Running it again continues (or shows) the finished campaign.
demo: $(VENV)/.ready
	$(BIN)/screening run \
	  --prototype B2 --prototype L1_0 --prototype perovskite \
	  --elements all89 --elements X=O,S,F \
	  --out $(RUNS)/demo

test: $(VENV)/.ready-test
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(VENV)/.ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; say which: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.ready: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP_INSTALL) -e .
	@touch $@

$(VENV)/.ready-test: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP_INSTALL) -e '.[test]'
	@touch $@ $(VENV)/.ready

$(VENV)/.ready-dev: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP_INSTALL) -e '.[dev]'
	@touch $@ $(VENV)/.ready $(VENV)/.ready-test

clean:
	rm -rf $(VENV) $(RUNS)/demo .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
