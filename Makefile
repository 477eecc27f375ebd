# make test and make bench do all the set-up themselves: a virtual environment in .venv, the newest torch that the index
# has if it lacks one, and pconv_ext. VENV= names another environment (one that has a torch >= 2.11 keeps it), PYTHON= the
# interpreter that makes it, TORCH= what to install as torch, now or later, ARGS= what else to tell pytest.
PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch>=2.11
ARGS ?=

BIN = $(VENV)/bin
CPP := $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu')
PY := $(shell find buildtools kernels pconv_ext -name '*.py')
DATA := $(shell find pconv_ext -name '*.json' -o -name '*.safetensors' -o -path '*/page/*')
SOURCES := setup.py pyproject.toml $(CPP) $(PY) $(DATA) $(sort $(dir $(CPP) $(PY)))  # folders change when a file goes

# The compilers whose machine code is checked, and the oldest Triton supported. A user's are whatever they have.
COMPILERS := $(abspath $(VENV))/compilers
TRITON_PINNED := triton==3.6.0
NVCC := $(COMPILERS)/nvcc/nvidia/cu13
NVCC_PINNED := nvidia-cuda-nvcc==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-runtime==13.0.96

# All tests of an operator as on a GPU, in the emulator, take a quarter of an hour on two cores: so of eight shares one a
# commit, each in its turn.
SHARE = $$(git rev-list --count HEAD 2>/dev/null || echo 0)/8
SPREAD := -n 2 --dist worksteal

.PHONY: test bench check check-all lint headers format typecheck docs dist release release-check deep deep-tests newest-triton as-gpu \
	bench-check wheel-check clean FORCE

test: $(VENV)/.pconv_ext
	$(BIN)/pytest $(ARGS)

bench: $(VENV)/.pconv_ext
	$(BIN)/pytest benchmarks --benchmark-only $(ARGS)

# What a change must pass beside make test, and a user need not wait for.
check: lint typecheck docs dist deep

check-all:
	$(MAKE) check SHARE=0/1

lint: $(VENV)/.dev headers
	$(BIN)/actionlint .github/workflows/*.yml
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CPP) tests/support/*.cpp

# Each header of the CPU kernels parses alone, as in an editor; of its functions it need not use any.
headers: $(patsubst %,%.alone,$(wildcard csrc/*.h csrc/cpu/*.h))

TORCH_OF = -c 'from importlib import util; print(*util.find_spec("torch").submodule_search_locations)'
%.h.alone: %.h $(VENV)/.dev
	@$(CXX) -std=c++17 -fvisibility=hidden -fsyntax-only -Wall -Werror -Wno-unused-function \
		-isystem "$$($(BIN)/python $(TORCH_OF))/include" -include $< -x c++ /dev/null

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP) tests/support/*.cpp

typecheck: $(VENV)/.dev
	$(BIN)/mypy

# The site, in build/site: README, docs/ and the docstrings. Strict: a link to what is not there is an error.
docs: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

# The wheel is built from the sdist, so an sdist that lacks a file fails here. pip builds it, because pip's isolated
# build finds the torch of this environment, where `python -m build` would download another; without its cache, because
# that knows an sdist by its name and returns the wheel of an earlier one.
dist: $(VENV)/.dev $(COMPILERS)/.ready
	rm -rf dist *.egg-info
	$(BIN)/python -m build --sdist
	CUDA_HOME=$(NVCC) $(BIN)/pip wheel --no-cache-dir --no-deps --wheel-dir dist dist/pconv_ext-*.tar.gz
	CUDA_HOME=$(NVCC) $(BIN)/python tools/check_dist.py
	rm -rf $(COMPILERS)/wheel
	$(BIN)/python -m zipfile -e dist/pconv_ext-*.whl $(COMPILERS)/wheel
	touch $(COMPILERS)/wheel/.ready

$(COMPILERS)/wheel/.ready: $(SOURCES)
	$(MAKE) dist

# What is published, in dist/release: the sdist, and the wheel with the tag of the oldest C library that it runs with.
release: dist
	rm -rf dist/release
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python tools/release.py

# Installed where nothing else is, and through the tests there: downloads several GB.
release-check: release
	rm -rf build/release-check
	$(PYTHON) -m venv build/release-check
	build/release-check/bin/pip install "$(TORCH)" numpy
	start=$$(date +%s%N); build/release-check/bin/pip install dist/release/*.whl; \
		echo "release-check: installed in $$(( ($$(date +%s%N) - start) / 1000000 )) ms beside torch"
	build/release-check/bin/pip install "$$(echo dist/release/*.whl)[test]" "torch==$$( \
		build/release-check/bin/python -c 'import torch; print(torch.__version__.partition("+")[0])')"
	build/release-check/bin/pconv-ext doctor  # not python -m, which finds the sources here
	build/release-check/bin/pytest $(ARGS)
	rm -rf build/release-check

deep: deep-tests newest-triton as-gpu bench-check
deep-tests newest-triton as-gpu: export OMP_NUM_THREADS = 1

# Tests marked deep, with the oldest Triton supported.
deep-tests: $(VENV)/.dev $(VENV)/.browser $(COMPILERS)/wheel/.ready
	PYTHONPATH=$(COMPILERS)/triton PCONV_EXT_TEST_WHEEL=$(COMPILERS)/wheel $(BIN)/pytest -m deep $(SPREAD) $(ARGS)

# A browser for the tests of the page, which are skipped where none is there and none can be installed.
$(VENV)/.browser: $(VENV)/.dev
	command -v chromium || command -v chromium-browser || command -v google-chrome || \
		timeout 300 $(BIN)/playwright install chromium || \
		{ apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium; } || \
		echo "no browser could be installed: the tests of the page will be skipped"
	touch $@

# Its kernels with the Triton of this environment, the newest where nothing else was asked for.
newest-triton: $(VENV)/.dev
	$(BIN)/pytest -m deep $(SPREAD) -k triton \
		tests/backends/test_gpu_kernels.py tests/emulator/test_triton_interpreter.py $(ARGS)

as-gpu: $(VENV)/.dev
	CUDA_VISIBLE_DEVICES= $(BIN)/pytest -m "" --as-gpu $(SPREAD) --share=$(SHARE) $(ARGS)

# Every form of every benchmark computes the same; nothing is timed.
bench-check: $(VENV)/.pconv_ext
	$(BIN)/pytest benchmarks --benchmark-disable $(ARGS)

# One wheel in the oldest torch and in the newest, each in a new environment: downloads several GB.
wheel-check: dist
	set -e; for torch in "torch==2.11.*" torch; do \
		rm -rf build/wheel-check; \
		$(PYTHON) -m venv build/wheel-check; \
		build/wheel-check/bin/pip install "$$torch" "$$(echo dist/*.whl)[test]"; \
		build/wheel-check/bin/python -c "import torch; print('wheel-check: torch', torch.__version__)"; \
		build/wheel-check/bin/pytest $(ARGS); \
	done; rm -rf build/wheel-check

clean:
	rm -rf build dist *.egg-info pconv_ext/*.so .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +

$(BIN)/pip:
	$(PYTHON) -c "import sys; sys.version_info >= (3, 10) or sys.exit('Python >= 3.10 is needed, not ' + sys.version)"
	$(PYTHON) -m venv $(VENV)

# An environment that is there follows another TORCH=; another PYTHON= it cannot follow.
VERSION_OF = -c 'import sys; print(*sys.version_info[:2])'
$(VENV)/.asked: FORCE | $(BIN)/pip
ifneq ($(origin PYTHON),file)
	@test "$$($(PYTHON) $(VERSION_OF))" = "$$($(BIN)/python $(VERSION_OF))" || \
		{ echo "$(VENV) has another Python than $(PYTHON): name a new folder for its environment, VENV=..."; exit 1; }
endif
	@echo "$(TORCH)" | cmp -s - $@ || echo "$(TORCH)" > $@

# torch comes first: the build then uses it instead of downloading one of its own. It is named again, because every
# torchvision fits one torch, and pip would otherwise take the newest of both; without what stands behind a "+", which
# is the builder's and in no index.
$(VENV)/.pconv_ext: $(SOURCES) $(VENV)/.asked | $(BIN)/pip
	$(BIN)/pip install "$(TORCH)"
	$(BIN)/pip install ".[test,bench]" "torch==$$($(BIN)/python -c 'import torch; print(torch.__version__.partition("+")[0])')"
	touch $@

$(VENV)/.dev: pyproject.toml | $(VENV)/.pconv_ext
	$(BIN)/pip install ".[dev]"
	touch $@

$(COMPILERS)/.ready: Makefile | $(BIN)/pip
	rm -rf $(COMPILERS)
	$(BIN)/pip install --no-deps --target $(COMPILERS)/triton "$(TRITON_PINNED)"
	$(BIN)/pip install --no-deps --target $(COMPILERS)/nvcc $(NVCC_PINNED)
	touch $@
