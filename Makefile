# make demo   the main job: train, resume, export and question a small model (environment included)
# make test   style and the whole suite (environment included)
# make env    the environment alone, in .venv; `. .venv/bin/activate` enters it
# make check  style alone; make test-fast  what needs neither parity with transformers nor training runs
# make test-dist  runs over gloo: every axis of the grid, resuming, bad input
# make test-handoff  exports in transformers, TRL, a server, lm-eval (installs these first)
# make test-slurm  runs that are disturbed on a real Slurm of emulated nodes (as root; installs Debian packages)
# make launch-env  nemo-run for `medx launch`, in .venv-launch: its pins clash with training's
# make clean  remove caches; make clean-all  also .venv and runs/

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
HANDOFF_STAMP := $(VENV)/.installed-handoff
LAUNCH := .venv-launch
LAUNCH_STAMP := $(LAUNCH)/.installed

# The first that answers and is new enough; pyenv's shim of a version that is not there answers with an error.
PYTHON := $(shell for python in python3.12 python3; do \
	if $$python -c 'import sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null; then echo $$python; break; fi; done)

# Taken for single files (the demo's H&E picture, Qwen3-VL's chat template) that are read without importing the
# package, so without their dependencies (numba, csbdeep; datasets, pandas), which the demo does not use; tests/handoff installs TRL whole.
FILES_ONLY := stardist trl
QUIET := -qq

# Groups in processes of their own: the CPU backend changes torch for a whole process, and distributed tests start
# ranks themselves. Two workers share the first group.
PYTEST := $(BIN)/python -m pytest
FAST := tests --ignore=tests/parity --ignore=tests/distributed --ignore=tests/handoff --ignore=tests/slurm/real \
	-n 2 --dist loadfile

.PHONY: demo test test-fast test-dist test-handoff test-slurm check env launch-env clean clean-all

demo: env
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python examples/demo.py

test: check test-fast
	$(PYTEST) tests/parity
	$(MAKE) test-handoff
	$(MAKE) test-dist
	$(MAKE) test-slurm

test-fast: env
	$(PYTEST) $(FAST)

test-dist: env
	$(PYTEST) tests/distributed

test-slurm: env launch-env
	$(PYTEST) -rs tests/slurm/real

test-handoff: $(HANDOFF_STAMP)
	$(PYTEST) tests/handoff

check: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

env: $(STAMP)

$(STAMP): setup.py constraints.txt Makefile
	@if [ -z "$(PYTHON)" ]; then \
		echo "found:  no python3.12 on the PATH, and python3 is $$(python3 --version 2>&1)" >&2; \
		echo "needed: Python 3.12 or newer: megatron-core 0.19 asks for it" >&2; \
		echo "do:     install it (apt install python3.12-venv, pyenv install 3.12), then make again" >&2; \
		exit 2; fi
	$(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV): 7 GB on disk, some minutes, silent unless something is wrong"
	$(BIN)/python -m pip install $(QUIET) --constraint constraints.txt --editable '.[demo,slides,dali,wandb,mlflow,test]'
	$(BIN)/python -m pip install $(QUIET) --constraint constraints.txt --no-deps $(FILES_ONLY)
	@touch $@

$(HANDOFF_STAMP): $(STAMP)
	$(BIN)/python -m pip install $(QUIET) --constraint constraints.txt --editable '.[rl,serve,eval]'
	@touch $@

launch-env: $(LAUNCH_STAMP)

$(LAUNCH_STAMP): launch-requirements.txt
	$(PYTHON) -m venv $(LAUNCH)
	$(LAUNCH)/bin/python -m pip install $(QUIET) --requirement launch-requirements.txt
	@touch $@

clean:
	rm -rf build *.egg-info .pytest_cache .ruff_cache
	find megatron_medx tests tools examples benchmarks -name __pycache__ -prune -exec rm -rf {} +

clean-all: clean
	rm -rf $(VENV) $(LAUNCH) .launched runs data/demo
