# make install | repro | study NAME=solvers | check | verify | prune | new | test | lint | format | docs | bench | timings | pins
# NAME=solvers names a study for check, verify, prune and timings, too; J=2 runs independent stages side by side, each on a
# GPU of its own where there are some.
# PRESET=smoke and DATA=path/to.zip, of a study that has presets, mean studies/NAME_PRESET/ wherever NAME names a study.
# PYTHON names the interpreter that .venv is built with.
PYTHON ?= python3
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
# Recipes read NAME and J from the environment, where make puts what its command line says: no shell reads them as code.
# A NAME that was there before is none of ours; the Windows Subsystem for Linux names the computer in it.
ifeq ($(origin NAME),environment)
NAME :=
endif
ifeq ($(origin PRESET),environment)
PRESET :=
endif
ifeq ($(origin DATA),environment)
DATA :=
endif
# What a recipe's shell begins with, so that its NAME is the folder of the study at that preset, written by then.
CHOSEN = $(if $(PRESET)$(DATA),NAME=$$($(BIN)/python -m stages.preset --study="$$NAME" --preset="$$PRESET" \
  --data="$$DATA") &&)

.PHONY: install repro study check verify prune new test lint format docs bench timings pins

install: .venv/installed

.venv/installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
	  || { echo "error: Python 3.11, 3.12 or 3.13 is needed; name one: make PYTHON=python3.12" >&2; exit 1; }
	@echo "installing the pinned packages into .venv: 6 GB on Linux, some minutes"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==0.13.8
	$(BIN)/uv pip sync --quiet --compile-bytecode --python $(BIN)/python requirements.txt
	@touch $@

repro: install
	@$(BIN)/python -m stages.resolve --check
	@$(if $(J),$(BIN)/python -m stages.repro --jobs "$$J",$(BIN)/dvc repro)

study: install  # another study: make study NAME=solvers
	@test -f "studies/$$NAME/dvc.yaml" || { echo "error: make study NAME=..., one of: $$(ls studies)" >&2; exit 1; }
	@$(CHOSEN) $(BIN)/python -m stages.resolve --check --params "studies/$$NAME/params.yaml" && \
	  $(if $(J),$(BIN)/python -m stages.repro --jobs "$$J" --params "studies/$$NAME/params.yaml",\
	  $(BIN)/dvc repro "studies/$$NAME/dvc.yaml")

check: install  # what the root study, or NAME, would run and what that costs here
	@$(CHOSEN) $(BIN)/python -m stages.check --params "$${NAME:+studies/$$NAME/}params.yaml"

verify: install  # make cells again from nothing and compare: CELLS=all or "edm:35:0,0 ddim:7"
	@$(CHOSEN) $(BIN)/python -m stages.verify --study="$$NAME" --cells="$$CELLS"

prune: install  # delete what rows that are gone from params.yaml have left; DRY=1 prints only
	@$(CHOSEN) $(BIN)/python -m stages.prune --params "$${NAME:+studies/$$NAME/}params.yaml" $(if $(DRY),--dry)

# a study of your own images: make new NAME=pets IMAGES=path/to/folder (or .zip), and SCALE=published, LABELS=classes
new: install
	@$(BIN)/python -m stages.new --name "$${NAME-}" --images "$${IMAGES-}" --scale "$${SCALE:-cpu}" --labels "$${LABELS:-none}"

test: install
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: install  # what is made from the code: docs/design-space.md, and params.schema.json, by which editors check a study
	$(BIN)/python -m stages.docs

bench: install
	$(BIN)/python -m benchmarks.measurement
	$(BIN)/python -m benchmarks.sampling
	$(BIN)/python -m benchmarks.training
	$(BIN)/python -m benchmarks.loop
	$(BIN)/python -m benchmarks.page
	$(BIN)/python -m benchmarks.device

timings: install  # seconds per image of every curve, of the root study or of NAME, into its report
	$(CHOSEN) $(BIN)/python -m stages.timings --name "$${NAME:-digits}" && \
	  $(BIN)/dvc repro --force --single-item "$${NAME:+studies/$$NAME/dvc.yaml:}report"

pins: install
	$(BIN)/uv pip compile --quiet --upgrade --universal --generate-hashes --python-version 3.11 --no-header \
	  --no-annotate --extra dev pyproject.toml --output-file requirements.txt
