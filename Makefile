# make demo: the first result.  make test: what CI runs.  Both make .venv first.
SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -c
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help env dev demo figures test slow lint types bench gpu docs schema clean

help:  ## show the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

env: .venv/core  ## .venv with the core (about a minute)
dev: .venv/dev   ## .venv with what the tests need (about half a minute more)

.venv/core: pyproject.toml constraints.txt
	@echo "--- environment: .venv with the core, about a minute"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	@touch .venv/core

.venv/dev: .venv/core
	@echo "--- environment: the development extras, about half a minute"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch .venv/dev

demo: env  ## run gaussian2d and draw Figure 4 (about a minute and a half on two cores)
	@echo "--- gaussian2d: 20 sweep points x 4 chunks of 100 replicates x 100 generations, about half a minute on two cores"
	$(BIN)/python -m selfloop.run experiments/gaussian2d.yaml
	$(BIN)/python -m figures gaussian2d

figures: env  ## redraw every figure from saved results
	$(BIN)/python -m figures

test: dev  ## lint, types and tests (about four minutes on two cores)
	@echo "--- lint and types, about half a minute"
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	@echo "--- tests, about two minutes on two cores"
	$(BIN)/python -m pytest -n 2

slow: dev  ## the tests that take more than five seconds each
	$(BIN)/python -m pytest -m slow

lint: dev  ## format and fix
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

types: dev  ## type check
	$(BIN)/mypy

bench: dev  ## speed, as ratios measured in one run (about four minutes)
	$(BIN)/python -m pytest benchmarks --benchmark-only -s -p no:xdist

FASHION := algorithm.algorithm.budget=2.048 algorithm.algorithm.snapshot=1.024 algorithm.n_synthetic=20000 \
	algorithm.budgets='[0.1, 0.3]' 'sweep.grid.algorithm.budget=[0.1, 0.3]' 'sweep.grid.algorithm.omega=[-1, 0, 0.5, 1, 2]' \
	track.image_quality.protocol=single

gpu: dev  ## on a CUDA machine: GPU tests, throughput and ten minutes of Fashion-MNIST (FASHION_MNIST=folder), into gpu/
	@$(BIN)/python -c "import torch; assert torch.cuda.is_available()" 2>/dev/null || { echo "torch finds no GPU: install its CUDA build, and see that nvidia-smi lists one"; exit 1; }
	mkdir -p gpu
	$(BIN)/python -m pytest -m gpu tests -p no:xdist 2>&1 | tee gpu/tests.txt
	$(BIN)/python -m pytest -m gpu benchmarks --benchmark-only -s -p no:xdist 2>&1 | tee gpu/benchmarks.txt
	$(BIN)/python -m selfloop.run experiments/fashion_sims.yaml $(FASHION) --out gpu/fashion_sims 2>&1 | tee gpu/fashion_sims.txt
	$(BIN)/python -m figures digits_sims --results gpu/fashion_sims --out gpu
	$(BIN)/python -m figures.keep digits_sims --results gpu/fashion_sims --out gpu/kept

docs: dev  ## HTML documentation in docs/_build
	$(BIN)/sphinx-build -W -b html docs docs/_build

schema: env  ## rewrite experiments/schema.json
	$(BIN)/python -m selfloop.run --schema > experiments/schema.json

clean:  ## remove the environment and what was built
	rm -rf .venv build docs/_build figures/out *.egg-info
