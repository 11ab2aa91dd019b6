# Every target sets itself up: Python 3.11+, make and a package registry are enough.
SHELL := /bin/sh
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV_VERSION := 0.13.9

.DEFAULT_GOAL := help
.PHONY: help up down test check gen gen-check format bench lock clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

up: $(VENV)/run ## Install what is missing, start the mesh in the background, return when it is ready
	@$(BIN)/mesh up --detach

down: $(VENV)/run ## Stop the mesh; state stays in .mesh/ (`mesh down --wipe` forgets it)
	@$(BIN)/mesh down

test: $(VENV)/dev ## Check everything, then run every test (< 12 min on 2 cores)
	@$(BIN)/pytest -n 2

check: $(VENV)/dev ## The quick checks to run before each commit: style, types, imports, contracts, layout
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/buf lint
	@$(BIN)/mesh check
	@$(BIN)/pytest -q tests/test_layout.py

gen: $(VENV)/dev ## Write gen/ anew from protos/
	@$(BIN)/mesh gen

gen-check: $(VENV)/dev ## Fail if gen/ is not what protos/ gives today
	@$(BIN)/mesh gen --check

format: $(VENV)/dev ## Format Python and protos
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix-only --quiet .
	@$(BIN)/buf format -w protos

bench: $(VENV)/dev ## Measure all, or ONLY=paths; writes bench/results/ and bench/RESULTS.md
	@$(BIN)/python -m bench $(ONLY)

lock: $(VENV)/uv ## Pin what pyproject.toml asks for, with hashes and without addresses
	@$(BIN)/uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate \
	  --no-header --quiet pyproject.toml --group build -o requirements.lock
	@$(BIN)/uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate \
	  --no-header --quiet pyproject.toml --group build --group dev -c requirements.lock -o requirements-dev.lock

clean: ## Remove what the targets above installed (not .mesh/)
	@rm -rf $(VENV) .deps gen/ts/node_modules

$(VENV)/uv:
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Nourish needs Python 3.11 or later; this is " \
	  + sys.version.split()[0] + ". Say which with: make PYTHON=python3.12 ...")'
	@$(PYTHON) -m venv $(VENV) || { echo "python3 -m venv failed: install your system's python3-venv package" >&2; exit 1; }
	@$(BIN)/pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	@touch $@

# Compiled now and not by each process that starts: where PYTHONDONTWRITEBYTECODE is set that is two thirds of a start.
INSTALL = $(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python
COMPILE = $(BIN)/python -m compileall -q mesh services gen/python

# The runtime alone: what `make up` needs.
$(VENV)/run: requirements.lock pyproject.toml | $(VENV)/uv
	@echo "installing the runtime packages into $(VENV) ..."
	@$(INSTALL) --require-hashes -r requirements.lock
	@$(INSTALL) --no-deps --no-build-isolation -e .
	@$(COMPILE)
	@touch $@

# Everything: what tests, checks and generators need. A superset of the above at the same versions.
$(VENV)/dev: requirements-dev.lock requirements.lock pyproject.toml gen/ts/package-lock.json | $(VENV)/uv
	@echo "installing the development packages into $(VENV) ..."
	@$(INSTALL) --require-hashes -r requirements-dev.lock
	@$(INSTALL) --no-deps --no-build-isolation -e .
	@$(COMPILE)
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/npm --prefix gen/ts ci --silent --no-audit --no-fund
	@$(BIN)/python -c 'from mesh.cli.gen import prepare_imports; prepare_imports()'
	@touch $@ $(VENV)/run
