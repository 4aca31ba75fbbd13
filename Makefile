# `make help` lists what there is. The set-up makes .venv once; later runs only check it.
#
# PYTHON=python3.11 make test    a Python of your choice; else 3.12, 3.11 or 3.13, whichever is found
# make demo ROUNDS=50            variables become parameters of the notebook

MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
export PYTHON

VENV := .venv/bin
FAST := not slow and not browser and not network and not gpu_compile
export PYTHONPATH :=
JOBS := 2

.PHONY: help setup setup-dev demo test test-all browser lint lab openfhe lock clean bench-he bench-engine bench-published bench-utility bench-dp bench-round gpu-compile bench-kernels

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:[^#]*## /:/' | awk -F: '{ printf "  make %-17s%s\n", $$1, $$2 }'

setup: ## the environment that the toolkit needs, in .venv
	@scripts/setup.sh

setup-dev: ## the same, and what tests and lint need
	@scripts/setup.sh dev

demo: ## the first federation, as a notebook; ROUNDS=50 TARGET_EPSILON=2 set its parameters
	@"$$(scripts/find_python.sh)" scripts/demo.py check
	@scripts/setup.sh
	@$(VENV)/python scripts/demo.py run

test: setup-dev ## the fast tests
	@$(VENV)/python -m pytest -q -n $(JOBS) --dist loadfile -m "$(FAST)"

test-all: setup-dev ## every test, also the slow ones and the browser
	@$(VENV)/python -m pytest -q

browser: ## the journey in JupyterLab, in a real Chromium
	@scripts/setup.sh dev notebook
	@$(VENV)/python -m pytest -q -m browser tests

lint: setup-dev ## ruff and pyright
	@$(VENV)/ruff check .
	@$(VENV)/pyright --pythonpath $(VENV)/python

lab: ## JupyterLab in the notebooks folder; ARGS="--no-browser --allow-root" passes options on
	@scripts/setup.sh notebook
	@$(VENV)/jupyter lab --notebook-dir=notebooks $(ARGS)

openfhe: setup ## try again to make OpenFHE's environment
	@$(VENV)/python scripts/openfhe_env.py

bench-kernels: setup ## the kernels on this machine, into docs/benchmarks
	@PYTHONPATH=kernels $(VENV)/python tests/bench/bench_kernels.py

bench-round: setup ## a round of 1,000 clients x 209,662 parameters, encrypted and not; CLIENTS=100
	@$(VENV)/python tests/bench/bench_round.py --clients $(or $(CLIENTS),1000)

gpu-compile: setup-dev ## compile the GPU kernels, without a GPU, into docs/benchmarks; ARGS="--only ntt"
	@"$$(scripts/find_python.sh)" scripts/gpu_compile.py $(ARGS)
	@$(VENV)/python -m pytest -q -n 0 -m gpu_compile tests/kernels

bench-he: setup-dev ## encryption beside OpenFHE and TenSEAL, into docs/benchmarks; ARGS=--quick
	@$(VENV)/python tests/bench/bench_he.py $(ARGS)

bench-engine: setup-dev ## rounds beside FedJAX, pfl and Flower, into docs/benchmarks; ARGS=--quick
	@$(VENV)/python tests/bench/bench_engine.py $(ARGS)

bench-utility: setup-dev ## accuracy against epsilon, into docs/benchmarks; ARGS=--quick
	@$(VENV)/python tests/bench/bench_utility.py $(ARGS)

bench-published: setup-dev ## published comparisons, run again, into docs/benchmarks; ARGS=--quick
	@$(VENV)/python tests/bench/bench_published.py $(ARGS)

bench-dp: setup-dev ## clipping, noise and DP-SGD beside peers, into docs/benchmarks; ARGS=--quick
	@$(VENV)/python tests/bench/bench_dp.py $(ARGS)

lock: ## resolve the dependencies anew (needs uv)
	@scripts/lock.sh

clean: ## remove .venv and everything that was built or cached here
	@rm -rf .venv build dist .pytest_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
