# Each target makes the environment it needs from pinned requirements; only Python 3.11+ and a package registry are needed.
#   PYTHON=python3.12      the interpreter that environments are made with
#   TIDEGATE_VENVS=DIR     where environments live, here by default
#   ARGS="..."             handed on to what a target runs: make demo ARGS="--chaos", make test ARGS="-k ledger"

PYTHON ?= python3
VENVS := $(or $(TIDEGATE_VENVS),.)
BIN := $(VENVS)/.venv/bin
TRAIN_BIN := $(VENVS)/.venv-train/bin
BENCHMARKS ?= $(patsubst benchmarks/%.py,%,$(shell grep -l '^if __name__ ==' benchmarks/*.py))
SOAK_ROUNDS ?= 20

.PHONY: help demo-env env train-env demo test test-train lint format schemas bench soak requirements clean
.DEFAULT_GOAL := help

help: ## Show the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  \1|\2/' | column -t -s '|'

demo-env:
	@$(PYTHON) scripts/environment.py $(VENVS)/.venv requirements/demo.txt

env:
	@$(PYTHON) scripts/environment.py $(VENVS)/.venv requirements/dev.txt

train-env:
	@$(PYTHON) scripts/environment.py $(VENVS)/.venv-train requirements/dev.txt requirements/train.txt

demo: demo-env ## Run the demo: two Kafka clusters, twenty cameras, every item accounted for
	@$(BIN)/tidegate demo $(ARGS)

test: env ## Run all tests but those of training (no torch)
	$(BIN)/python -m pytest -m "not train" $(ARGS)

test-train: train-env ## Run the tests of training (torch: 4.5 GB of disk)
	$(TRAIN_BIN)/python -m pytest -m train $(ARGS)

lint: env ## Check style, types and the dependency rule
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: env ## Put the code into the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

schemas: env ## Write anew what is derived: JSON Schemas, AsyncAPI, golden records, docs of metrics and alerts, rules, dashboard
	$(BIN)/python -m scripts.publish_schemas
	$(BIN)/python scripts/publish_metrics.py
	$(BIN)/python scripts/publish_observability.py

bench: env ## Run the benchmarks; BENCHMARKS=NAME runs one, ARGS="--quick --json" hands options on
	@set -e; for name in $(BENCHMARKS); do $(BIN)/python -m benchmarks.$$name $(ARGS); done

soak: demo-env ## Simulate 10,000 seeds, then run the demo with kills and cuts SOAK_ROUNDS times; ends at the first account that does not balance
	@$(BIN)/tidegate simulate --runs 10000
	@set -e; for round in $$(seq $(SOAK_ROUNDS)); do \
		echo "round $$round of $(SOAK_ROUNDS)"; $(BIN)/tidegate demo --chaos --cut 10s $(ARGS); done

# Pins stay as they are unless UPGRADE=--upgrade is given; each file is held to the versions of the one before.
COMPILE = $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --annotation-style line \
	--no-emit-index-url --no-emit-find-links --custom-compile-command "make requirements" \
	$(UPGRADE) pyproject.toml requirements/build.in --output-file requirements

requirements: env ## Write the pinned requirements anew from pyproject.toml
	$(COMPILE)/train.txt --extra train
	$(COMPILE)/dev.txt --extra dev --constraints requirements/train.txt
	$(COMPILE)/demo.txt --extra demo --constraints requirements/dev.txt
	$(COMPILE)/base.txt --constraints requirements/demo.txt

clean: ## Remove environments and caches
	rm -rf $(VENVS)/.venv $(VENVS)/.venv-train .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
