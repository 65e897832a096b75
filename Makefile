# make install | repro | study NAME=solvers | test | lint | format | bench | timings | pins | verify. PYTHON names the interpreter that .venv is built with.
PYTHON ?= python3
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: install repro study test lint format bench timings pins verify

install: .venv/installed

.venv/installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
	  || { echo "error: Python 3.11, 3.12 or 3.13 is needed; name one: make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==0.13.8
	$(BIN)/uv pip sync --quiet --python $(BIN)/python requirements.txt
	@touch $@

repro: install
	@$(BIN)/python -m stages.resolve --check
	@$(BIN)/dvc repro

study: install  # another study: make study NAME=solvers
	@test -f "studies/$(NAME)/dvc.yaml" || { echo "error: make study NAME=..., one of: $$(ls studies)" >&2; exit 1; }
	@$(BIN)/python -m stages.resolve --check --params "studies/$(NAME)/params.yaml"
	@$(BIN)/dvc repro "studies/$(NAME)/dvc.yaml"

test: install
	$(BIN)/python -m pytest

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: install
	$(BIN)/python -m benchmarks.measurement
	$(BIN)/python -m benchmarks.sampling
	$(BIN)/python -m benchmarks.training
	$(BIN)/python -m benchmarks.loop

timings: install  # seconds per image of every curve, of the root study or of NAME, into its report
	$(BIN)/python -m stages.timings --name "$(or $(NAME),digits)"
	$(BIN)/dvc repro --force --single-item "$(if $(NAME),studies/$(NAME)/dvc.yaml:)report"

pins: install
	$(BIN)/uv pip compile --quiet --upgrade --universal --generate-hashes --python-version 3.11 --no-header \
	  --no-annotate --extra dev pyproject.toml --output-file requirements.txt

verify: install  # make cells again from nothing and compare: CELLS=all or "edm:35:0,0 ddim:7", NAME=solvers
	@$(BIN)/python -m stages.verify --study="$$NAME" --cells="$$CELLS"
