# `make demo` and `make test` work in a clean clone on a machine with only Python 3.11 or later.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
# Nothing is sent anywhere, and no stage asks a question.
export DO_NOT_TRACK := true
export DVC_NO_ANALYTICS := 1
export MLFLOW_DISABLE_TELEMETRY := true
export PREFECT_SERVER_ANALYTICS_ENABLED := false
export PATH := $(abspath $(BIN)):$(PATH)

.PHONY: help setup demo test bench format lock clean

help:  ## say what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(VENV)/.ready  ## install everything into .venv, in locked versions

$(VENV)/.ready: constraints.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed; set PYTHON=")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: setup  ## simulated scenes to a registered model, then say where everything is
	$(BIN)/dvc repro
	@$(BIN)/glacier -q summary

# The slow tests (servers, the whole demo, real data) run in CI and with `make test SLOW=1`.
SLOW ?= $(CI)
# Processes for the others; files of tests are never divided, and not begun by how many tests they hold:
# one of few long tests would be the last, and a process wait for it alone.
JOBS ?= 2

test: setup  ## lint, types, tests; the slow ones too with SLOW=1
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder -m 'not slow'
	$(if $(SLOW),$(BIN)/python -m pytest -m slow)

# SMALL=1 checks results in two minutes; ARGS goes on to `python -m benchmarks` (--help says what).
bench: setup  ## measure speed and memory beside a plain reference and the machine's floor
	$(BIN)/python -m benchmarks $(if $(SMALL),--small) $(ARGS)

format: setup  ## format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock:  ## write constraints.txt anew from pyproject.toml
	rm -rf $(VENV)-lock && $(PYTHON) -m venv $(VENV)-lock
	$(VENV)-lock/bin/python -m pip install --quiet --editable '.[dev]'
	{ echo '# Exact versions for set-up, written by `make lock`. Reasons stand in pyproject.toml.'; \
	  $(VENV)-lock/bin/python -m pip freeze --exclude-editable | sed -E 's/\+cpu$$//'; } > constraints.txt
	rm -rf $(VENV)-lock

clean:  ## remove what can be made again, DVC's cache and MLflow's store excepted
	rm -rf $(VENV) data/masks data/slices data/dataset data/evaluation data/registration.json
