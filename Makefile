# Everything runs in .venv, made once and reused; delete it to start over.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready-$(shell cksum < pyproject.toml | cut -d' ' -f1)-$(shell cksum < constraints.txt | cut -d' ' -f1)

.DEFAULT_GOAL := help
.PHONY: help setup run test test-fast lint format bench gpu-bundle faults readme

help: ## List the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12

setup: $(READY) ## Make .venv and install autoft with the tested versions

$(READY):
	@echo "Setting up $(VENV) (the first time downloads PyTorch and friends: minutes)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "autoft needs Python 3.11 or later: make PYTHON=python3.11 ...")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --upgrade --constraint constraints.txt pip
	@PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@rm -f $(VENV)/.ready-*
	@touch $@
	@echo "Ready: $(BIN)/autoft"

run: setup ## Do the main job on the embedded default: plan, train, evaluate, save, show
	@$(BIN)/autoft run

# A process a core, but no more than memory has room for; a file stays in one, for what its tests share
PYTEST := $(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

test: setup ## Run all tests
	@$(PYTEST)

test-fast: setup ## Run the tests that take seconds
	@$(PYTEST) -m "not slow"

lint: setup ## Check style and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: setup ## Rewrite the code in the project's style
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: setup ## Measure start-up, planner, CPU step, starter, trainer beside TRL and old runs; write benchmarks/results
	@$(BIN)/python benchmarks/startup.py
	@$(BIN)/python benchmarks/planner_speed.py
	@$(BIN)/python benchmarks/plan_speed.py
	@$(BIN)/python benchmarks/data_check.py
	@$(BIN)/python benchmarks/measured_runs.py
	@$(BIN)/python benchmarks/loading_order.py
	@$(BIN)/python benchmarks/cpu_step.py
	@$(BIN)/python benchmarks/starter.py
	@$(BIN)/python benchmarks/trainer_speed.py

gpu-bundle: setup ## Put autoft, benchmarks/gpu_evidence.py and their wheels into build/gpu-bundle, for a machine with a GPU
	@$(BIN)/python benchmarks/bundle/build.py build/gpu-bundle

faults: setup ## Cause every fault that a run must survive; write the table of docs/faults.md (half an hour)
	@$(BIN)/python benchmarks/faults.py

readme: setup ## Regenerate the output blocks of README.md and docs/how-estimates-work.md, docs/catalogue.md, docs/result.md and docs/plans.md
	@$(BIN)/python docs/readme_blocks.py
	@$(BIN)/python docs/catalogue.py
	@$(BIN)/python docs/result_page.py
	@$(BIN)/python docs/plan_table.py
