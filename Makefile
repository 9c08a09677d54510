# Everything runs in .venv, made once and reused; delete it to start over.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready-$(shell cksum < pyproject.toml | cut -d' ' -f1)-$(shell cksum < constraints.txt | cut -d' ' -f1)

.DEFAULT_GOAL := help
.PHONY: help setup run test test-fast test-cuda standin lint format bench gpu-bundle faults hostile fuzz readme recording docs

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

# The CUDA build of PyTorch beside a stand-in for the card: an environment of its own, 6 GB, which no other target needs
CUDA_TORCH := 2.14.1
CUDA_VENV ?= .venv-cuda
CUDA_BIN := $(CUDA_VENV)/bin
CUDA_READY := $(CUDA_VENV)/.ready-$(CUDA_TORCH)-$(notdir $(READY))
STANDIN := $(CUDA_VENV)/standin
STANDIN_SOURCES := $(wildcard tests/standin/*.sh tests/standin/*.py tests/standin/*.txt tests/standin/src/* tests/standin/truth/*)

$(CUDA_READY):
	@echo "Setting up $(CUDA_VENV) (downloads PyTorch for CUDA: 6 GB, minutes)"
	@test "$$(uname -sm)" = "Linux x86_64" || { echo "make test-cuda needs Linux on x86-64" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "autoft needs Python 3.11 or later: make PYTHON=python3.11 ...")'
	@test -x $(CUDA_BIN)/python || $(PYTHON) -m venv $(CUDA_VENV)
	@sed 's/^torch==.*/torch==$(CUDA_TORCH)/' constraints.txt > $(CUDA_VENV)/constraints.txt
	@$(CUDA_BIN)/python -m pip install --quiet --upgrade --constraint $(CUDA_VENV)/constraints.txt pip
	@PYTHONWARNINGS=ignore $(CUDA_BIN)/python -m pip install --quiet --constraint $(CUDA_VENV)/constraints.txt --editable '.[dev]'
	@rm -f $(CUDA_VENV)/.ready-*
	@touch $@

$(STANDIN)/.built: $(CUDA_READY) $(STANDIN_SOURCES)
	@bash tests/standin/build.sh $(CUDA_VENV) $(STANDIN)
	@touch $@

standin: $(STANDIN)/.built ## Make .venv-cuda and build the stand-in for CUDA there

test-cuda: standin ## Run tests/cuda on described cards; write benchmarks/results/test_cuda.json
	@$(CUDA_BIN)/python benchmarks/cuda_tests.py

lint: setup ## Check style, types and prose
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/python tests/prose.py

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
	@$(BIN)/python benchmarks/bundle/build_bundle.py build/gpu-bundle

faults: setup ## Cause every fault that a run must survive; write the table of docs/faults.md (half an hour)
	@$(BIN)/python benchmarks/faults.py

hostile: setup ## Try everything in tests/hostile; write the table of docs/hostile.md
	@$(BIN)/python -m pytest -q tests/hostile --table docs/hostile.md

fuzz: setup ## Let atheris look for a file that autoft does not read or refuse, for ten minutes
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[fuzz]'
	@$(BIN)/python tests/hostile/fuzz.py

docs: setup ## Build the site of docs/ into build/site; a broken link is an error
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

recording: setup ## Film plan and run of the starter on this machine: docs/run.svg (two minutes)
	@$(BIN)/python docs/recording.py

readme: setup ## Regenerate what README.md and docs/ show of commands and results, and the pages made of tables
	@$(BIN)/python docs/readme_blocks.py
	@$(BIN)/python docs/catalogue.py
	@$(BIN)/python docs/result_page.py
	@$(BIN)/python docs/settings_page.py
	@$(BIN)/python docs/templates_table.py
	@$(BIN)/python docs/plan_table.py
	@$(BIN)/python docs/exports_table.py
	@$(BIN)/python docs/models_table.py
