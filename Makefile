# make        sets up, builds database, lists and site, says what was built
# make test   sets up what is missing and runs all tests
PYTHON ?= python3
BIN := .venv/bin
SOURCES := $(shell find catalog reference_impls site -type f -not -path '*/__pycache__/*' 2>/dev/null)

.PHONY: all setup test lint verify bench serve clean

all: build/.site
	@$(BIN)/peft-catalog info

setup: .venv/.installed

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/.installed: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[run,site]'
	@touch $@

.venv/.tests: .venv/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[run,site,parity,dev]'
	@touch $@

build/.database: .venv/.installed $(SOURCES)
	@mkdir -p build
	$(BIN)/peft-catalog build
	@touch $@

AWESOME.md: build/.database
	$(BIN)/peft-catalog list write --style awesome --output AWESOME.md
	@touch $@

build/.site: AWESOME.md
	$(BIN)/peft-catalog site build --output build/site
	@touch $@

test: .venv/.tests
	$(BIN)/python -m pytest -n auto --dist worksteal

lint: .venv/.tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

verify: .venv/.installed
	$(BIN)/peft-catalog verify --record
	$(BIN)/peft-catalog strength --record

bench: .venv/.tests
	$(BIN)/peft-catalog bench --record
	$(BIN)/python scripts/compare_with_peft.py --record

serve: build/.site
	$(BIN)/python -m http.server --directory build/site --bind 127.0.0.1 8000

clean:
	rm -rf build .venv
