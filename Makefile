# Every target sets up what it needs in .venv. To use another environment: make PYTHON=/path/to/python <target>,
# which then must hold the dependencies already (pip install -e '.[dev]').
.DEFAULT_GOAL := help
SHELL := /bin/bash

ifdef PYTHON
SETUP :=
else
PYTHON := .venv/bin/python
SETUP := .venv/.installed
endif
SYSTEM_PYTHON ?= python3
JOBS ?= $(shell nproc)
TEST_JOBS ?= 2# processes that run tests, each a file at a time, with one thread each: more would wait for each other
BIN = $(dir $(PYTHON))
export PATH := $(abspath $(dir $(PYTHON))):$(PATH)

CXX_FILES = $(shell git ls-files --cached --others --exclude-standard -- 'csrc/*.cpp' 'csrc/*.h' 'csrc/*.cu' 'csrc/*.cuh' \
	'tests/*.cpp' 'tests/*.h' 'tests/*.cu' 'tests/*.cuh')
PY_DIRS = $(wildcard showo_ext python tests benchmarks examples tools setup.py)

.PHONY: help install dev emulator kernel-package demo recipe test test-ptx kernel-table test-fast test-kernels test-soak test-ray test-asan lint format clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

.venv/.installed: pyproject.toml setup.py constraints.txt
	$(SYSTEM_PYTHON) -m venv .venv
	.venv/bin/python -m pip install -q -c constraints.txt 'setuptools>=77' wheel cmake ninja pybind11
	.venv/bin/python -m pip install -q -c constraints.txt --no-build-isolation -e '.[dev]'
	touch $@

install: $(SETUP) ## create .venv and install the package into it

dev: $(SETUP) ## build the native module in-tree (incremental)
	$(PYTHON) setup.py -q build_ext --inplace -j $(JOBS)

demo: dev ## generate a sheet of pictures, describe two, train for a minute
	$(PYTHON) -m showo.demo

emulator: dev ## build the PTX emulator and the extension linked against it (for tests)
	$(BIN)cmake --build build/dev --target emulator -j $(JOBS)

BACKEND ?= cpu
kernel-package: dev ## build/kernel_package: the operators as a package of the Hugging Face kernel hub (BACKEND=cuda)
	$(PYTHON) -m tools.kernel_package.build --backend $(BACKEND)

recipe: dev ## the whole tiny recipe, from nothing to a judged model: many hours, resumable (RECIPE="--device cuda")
	$(PYTHON) -m showo.recipe $(RECIPE)

test-ptx: emulator ## the PTX emulator's own tests, and the operators on it
	$(PYTHON) -m pytest tests/ptx

kernel-table: emulator ## write docs/kernels.md anew: registers, shared memory and occupancy of every kernel
	$(PYTHON) -m pytest -q tests/ptx/test_runtime.py --write-kernel-table

test: emulator ## lint and the tests, but for the soak runs and the exhaustive sweep over kernels
	$(MAKE) lint $(if $(SETUP),,PYTHON=$(PYTHON))
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -n $(TEST_JOBS) --dist loadfile --no-loadscope-reorder -m "not soak and not kernels"

test-fast: dev ## the tests that take seconds
	$(PYTHON) -m pytest -q -m "not slow and not soak and not kernels"

test-kernels: emulator ## the exhaustive sweep over kernels: single tests of it take longer than others may
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -n $(TEST_JOBS) -m kernels -o faulthandler_timeout=7200

test-soak: dev ## long runs: a training that is killed thirty times at random moments, a server of a thousand requests
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -m soak -o faulthandler_timeout=3600

test-ray: dev ## install Ray Serve and test the server in two replicas: one is killed, can draw no more, hangs
	$(PYTHON) -m pip install -q -c constraints.txt 'ray[serve]>=2.40'
	$(PYTHON) -m pytest -q tests/showo/serve/test_ray.py

ASAN = build/asan
test-asan: $(SETUP) ## operator tests under AddressSanitizer and UndefinedBehaviorSanitizer (ASAN_TESTS=...)
	mkdir -p $(ASAN)/site/showo_ext
	ln -sfn $(CURDIR)/showo_ext/* $(ASAN)/site/showo_ext/ && rm -f $(ASAN)/site/showo_ext/_C*.so
	$(BIN)cmake -S. -B$(ASAN)/build -GNinja -DSHOWO_SANITIZE=ON -DSHOWO_EXT_CUDA=0 -DPython_EXECUTABLE=$(abspath $(PYTHON)) \
		-Dpybind11_DIR=$$($(PYTHON) -m pybind11 --cmakedir) -DSHOWO_EXT_OUTPUT_DIR=$(CURDIR)/$(ASAN)/site/showo_ext
	$(BIN)cmake --build $(ASAN)/build --target _C -j $(JOBS)
	LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so) $$(gcc -print-file-name=libstdc++.so.6)" \
	ASAN_OPTIONS=detect_leaks=0 PYTHONPATH=$(CURDIR)/$(ASAN)/site:$(CURDIR)/python:$(CURDIR) \
		$(BIN)pytest -q -p no:cacheprovider -o pythonpath= $(or $(ASAN_TESTS),tests/codebook tests/resample)

lint: $(SETUP) ## ruff, mypy, clang-format
	$(BIN)ruff check $(PY_DIRS)
	$(BIN)ruff format --check $(PY_DIRS)
	$(BIN)mypy showo_ext tests/template/showo_ext $(if $(wildcard python/showo/__init__.py),python/showo)
	$(if $(CXX_FILES),$(BIN)clang-format --dry-run --Werror $(CXX_FILES))

format: $(SETUP) ## apply ruff and clang-format
	$(BIN)ruff format $(PY_DIRS)
	$(BIN)ruff check --fix $(PY_DIRS)
	$(if $(CXX_FILES),$(BIN)clang-format -i $(CXX_FILES))

clean: ## remove what was built
	rm -rf build dist *.egg-info showo_ext/_C*.so
