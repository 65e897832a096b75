# make install | repro | study NAME=solvers | check | verify | prune | new | accept | test | lint | format | docs | bench
#      | gpu-check | timings | pins
# Each target calls `python -m pipeline <command>`; `python -m pipeline <command> --help` lists the options.
# NAME=solvers names a study for check, verify, prune, accept and timings, too. J=8 runs eight independent stages side by
# side, each on its own GPU if there are GPUs. PRESET=smoke and DATA=path/to.zip choose a preset and a data set, for studies that
# have presets; the study is then studies/NAME_PRESET/. PYTHON names the interpreter that .venv is built with.
PYTHON ?= python3
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
# Recipes read NAME, J and the other variables from the environment, where make puts what its command line says: no shell
# reads them as code. A NAME from the environment itself is ignored, because the Windows Subsystem for Linux names the
# computer in it.
ifeq ($(origin NAME),environment)
NAME :=
endif
ifeq ($(origin PRESET),environment)
PRESET :=
endif
ifeq ($(origin DATA),environment)
DATA :=
endif
# Nothing of the user's Python and plotting reaches a command: other packages, another interpreter's settings.
HARMLESS := PYTHONUNBUFFERED PYTHONDONTWRITEBYTECODE PYTHONPYCACHEPREFIX
unexport $(filter-out $(HARMLESS),$(filter PYTHON% MPL% MATPLOTLIB%,$(.VARIABLES))) PIP_TARGET PIP_PREFIX PIP_ROOT
export PIP_USER := 0
RUN := @$(BIN)/python -m pipeline
STUDY := --study="$$NAME" --preset="$$PRESET" --data="$$DATA"

.PHONY: install repro study check verify prune new accept test lint format docs bench gpu-check timings pins

install: .venv/installed

.venv/installed: requirements.txt requirements-uv.txt
	@test -e .git || { echo "error: not a Git repository, which DVC needs; clone the project, or run git init here" >&2; exit 1; }
	@case "$$(pwd)" in *:*) echo "error: $$(pwd): PATH cannot name a folder with a colon; move the clone" >&2; exit 1;; esac
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
	  || { echo "error: Python 3.11, 3.12 or 3.13 is needed; name one: make PYTHON=python3.12" >&2; exit 1; }
	@echo "installing the pinned packages into .venv: 6 GB on Linux, some minutes"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements-uv.txt
	$(BIN)/uv pip sync --quiet --compile-bytecode --python $(BIN)/python requirements.txt
	@touch $@

repro: install  # run what has changed in the root study
	$(RUN) repro --jobs="$$J"

study: install  # the same for another study: make study NAME=solvers
	@test -n "$$NAME" || { echo "error: name a study: make study NAME=..., one of: $$(echo $$(ls studies))" >&2; exit 1; }
	$(RUN) repro $(STUDY) --jobs="$$J"

check: install  # what would run, and what it costs on this machine
	$(RUN) check $(STUDY)

verify: install  # make cells again from nothing and compare: CELLS=all or "edm:35:0,0 ddim:7"
	$(RUN) verify $(STUDY) --cells="$$CELLS"

prune: install  # delete the outputs of rows that are no longer in params.yaml; DRY=1 prints only
	$(RUN) prune $(STUDY) $(if $(DRY),--dry)

accept: install  # take new code for old results after comparing samples of them: NAME=solvers or all
	$(RUN) accept --study="$$NAME"

# a study of your own images: make new NAME=pets IMAGES=path/to/folder (or .zip), and SCALE=published, LABELS=classes
new: install
	$(RUN) new --study="$$NAME" --images="$$IMAGES" --scale="$${SCALE:-cpu}" --labels="$${LABELS:-none}"

test: install  # all tests, or with FAST=1 those that need no DVC run, browser or torchrun
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile $(if $(FAST),-m "not dvc and not browser and not torchrun")

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: install  # write docs/design-space.md and params.schema.json from the code
	$(RUN) docs

bench: install
	$(BIN)/python -m benchmarks.measurement
	$(BIN)/python -m benchmarks.sampling
	$(BIN)/python -m benchmarks.training
	$(BIN)/python -m benchmarks.loop
	$(BIN)/python -m benchmarks.likelihood
	$(BIN)/python -m benchmarks.given
	$(BIN)/python -m benchmarks.latents
	$(BIN)/python -m benchmarks.page

gpu-check: install  # what must hold on a GPU, and how fast it is; without one, a rehearsal on the CPU
	@$(BIN)/python -m benchmarks.gpu_check

timings: install  # measure the seconds per image of every curve, and write them into the report
	$(RUN) timings $(STUDY)

pins: install
	$(BIN)/uv pip compile --quiet --upgrade --universal --generate-hashes --python-version 3.11 --no-header \
	  --no-annotate --extra dev pyproject.toml --output-file requirements.txt
	echo uv | $(BIN)/uv pip compile --quiet --upgrade --universal --generate-hashes --python-version 3.11 --no-header \
	  --no-annotate - --output-file requirements-uv.txt
