# `make` lists what there is. The first target that needs it makes .venv; pip follows the user's own configuration.
PYTHON ?= python3
VENV   ?= .venv
STUDY  ?= tiny-methods
ARGS   ?=
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup study test test-slow check format clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1|/' | awk -F'|' '{printf "%-18s %s\n", $$1, $$2}'

setup: $(READY)  ## make .venv with the tested versions (again only when pyproject.toml or constraints.txt changed)

$(READY): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[train,hqq,torchao,wandb,dashboard,dev]'
	@touch $@

study: setup  ## run or continue a study: make study STUDY=tiny-methods ARGS='search.trials=4'
	$(BIN)/harness study $(STUDY) $(ARGS)

# One thread per process: two workers with a thread pool each are slower than one, and sums depend on the number of threads.
test: setup  ## the tests that run everywhere: CPU, offline
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 $(ARGS)

test-slow: setup  ## the tests that take minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m 'slow and not gpu and not network' $(ARGS)

check: setup  ## format, lint, types, imports
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup  ## mend format and what lint can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:  ## remove caches (results and .venv stay)
	rm -rf .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis build dist
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
