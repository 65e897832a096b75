# make install | repro | test | lint | format | pins. PYTHON names the interpreter to build .venv with.
PYTHON ?= python3
export PATH := $(CURDIR)/.venv/bin:$(PATH)

.PHONY: install repro test lint format pins

install: .venv/installed

.venv/installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
	  || { echo "error: Python 3.11, 3.12 or 3.13 is needed; say which with: make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check uv==0.13.8
	.venv/bin/uv pip sync --quiet --compile-bytecode --python .venv/bin/python requirements.txt
	@touch $@

repro: install
	@python -m stages.resolve --check
	dvc repro

test: install
	python -m pytest

format: install
	ruff check --fix .
	ruff format .

lint: install
	ruff check .
	ruff format --check .
	mypy

pins: install
	uv pip compile --quiet --universal --generate-hashes --python-version 3.11 --no-header --extra dev \
	  pyproject.toml --output-file requirements.txt
