# make test and make bench do all the set-up themselves: a virtual environment in .venv, torch if it lacks one, and
# pconv_ext. VENV= names another environment (one that has a torch >= 2.11 keeps it), PYTHON= the interpreter that
# makes it, TORCH= what to install as torch, ARGS= what else to tell pytest.
PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch>=2.11
ARGS ?=

BIN = $(VENV)/bin
CPP := $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu')
PY := $(shell find buildtools kernels pconv_ext -name '*.py')
SOURCES := setup.py pyproject.toml $(CPP) $(PY) $(sort $(dir $(CPP) $(PY)))  # folders change when a file goes

.PHONY: test bench lint format typecheck dist wheel-check triton-check clean

test: $(VENV)/.pconv_ext
	$(BIN)/pytest $(ARGS)

bench: $(VENV)/.pconv_ext
	$(BIN)/pytest benchmarks --benchmark-only $(ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CPP)

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP)

typecheck: $(VENV)/.dev
	$(BIN)/mypy

# The wheel is built from the sdist, so an sdist that lacks a file fails here. pip builds it, because pip's isolated
# build finds the torch of this environment, where `python -m build` would download another; without its cache, because
# that knows an sdist by its name and returns the wheel of an earlier one.
dist: $(VENV)/.dev
	rm -rf dist *.egg-info
	$(BIN)/python -m build --sdist
	$(BIN)/pip wheel --no-cache-dir --no-deps --wheel-dir dist dist/pconv_ext-*.tar.gz
	$(BIN)/python buildtools/check_dist.py

# One wheel in the oldest torch and in the newest, each in a new environment: downloads several GB.
wheel-check: dist
	set -e; for torch in "torch==2.11.*" torch; do \
		rm -rf build/wheel-check; \
		$(PYTHON) -m venv build/wheel-check; \
		build/wheel-check/bin/pip install "$$torch" "$$(echo dist/*.whl)[test]"; \
		build/wheel-check/bin/python -c "import torch; print('wheel-check: torch', torch.__version__)"; \
		build/wheel-check/bin/pytest $(ARGS); \
	done; rm -rf build/wheel-check

# The oldest Triton supported, beside whichever the tests found: its interpreter and its compiler.
triton-check: $(VENV)/.pconv_ext
	rm -rf build/triton
	$(BIN)/pip install --no-deps --target build/triton "triton==3.6.*"
	PYTHONPATH=build/triton $(BIN)/pytest tests/test_triton.py tests/test_compiled.py $(ARGS)

clean:
	rm -rf build dist *.egg-info pconv_ext/*.so .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +

$(BIN)/python:
	$(PYTHON) -c "import sys; sys.version_info >= (3, 10) or sys.exit('Python >= 3.10 is needed, not ' + sys.version)"
	$(PYTHON) -m venv $(VENV)

# torch comes first: the build then uses it instead of downloading one of its own. It is named again, because every
# torchvision fits one torch, and pip would otherwise take the newest of both.
$(VENV)/.pconv_ext: $(SOURCES) | $(BIN)/python
	$(BIN)/pip install "$(TORCH)"
	$(BIN)/pip install ".[test,bench]" "torch==$$($(BIN)/python -c 'import torch; print(torch.__version__)')"
	touch $@

$(VENV)/.dev: pyproject.toml | $(VENV)/.pconv_ext
	$(BIN)/pip install ".[dev]"
	touch $@
