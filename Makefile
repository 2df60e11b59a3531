# Everything here makes the virtual environment .venv first, from pyproject.toml and constraints.txt.
# Variables: PYTHON=python3.12 (3.11 or newer), ARGS="more arguments for pytest or the demo", JOBS=4 (processes of the
# tests), ARCHGRAD_DATA=folder,
# GPU_OUT=file and GPU_ARGS="--device cpu --toy" of make gpu.

PYTHON ?= $(shell for p in python3.11 python3 python; do \
            $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
ARGS ?=
# Processes of the tests: one a core, from two to eight.
JOBS ?= $(shell $(PYTHON) -c 'import os; print(min(8, max(2, os.cpu_count() or 2)))' 2>/dev/null || echo 2)
GPU_OUT ?= benchmarks/results/gpu.json
GPU_ARGS ?=

# The larger data sets of the slow tests and benchmarks, where they lie beside the checkout.
ifeq ($(origin ARCHGRAD_DATA),undefined)
ifneq ($(wildcard ../shared/data),)
export ARCHGRAD_DATA := $(abspath ../shared/data)
endif
endif

# For small networks one thread is faster than several, many times so where other work shares the cores.
demo test check bench fuzz: export OMP_NUM_THREADS := 1
demo test check bench fuzz: export MKL_NUM_THREADS := 1

.DEFAULT_GOAL := help
.PHONY: help demo test check bench gpu ledger fuzz docs minimum release clean

help:  ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/ :/' | while IFS=: read -r name text; do \
	  printf 'make %-8s%s\n' "$$name" "$$text"; done

demo: .venv/installed  ## slim a CNN on real digits, end to end, into runs/demo
	$(BIN)/archgrad demo --out runs/demo --seed 0 $(ARGS)

test: .venv/installed .venv/timm  ## all tests but the slow ones
	$(BIN)/python -m pytest -n $(JOBS) --dist loadgroup -m "not slow" $(ARGS)

check: .venv/installed .venv/timm  ## format, lint, spelling, types, import floors, documentation, tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/codespell
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/mkdocs build --strict --quiet --site-dir build/site
	$(BIN)/python -m pytest -n $(JOBS) --dist loadgroup -m "not slow" $(ARGS)

bench: .venv/installed .venv/timm  ## the slow tests and the benchmark, on real data (ARCHGRAD_DATA)
	@echo "data: $${ARCHGRAD_DATA:-ARCHGRAD_DATA is not set, so only data that comes with the packages}"
	$(BIN)/python -m pytest -m slow $(ARGS)
	$(BIN)/python benchmarks/slim.py

gpu: .venv/installed  ## ten minutes on a GPU: every method, training steps, slimming; rows into GPU_OUT
	$(BIN)/python benchmarks/gpu.py --out $(GPU_OUT) $(GPU_ARGS)

ledger: .venv/installed  ## benchmarks/RESULTS.md and RESULTS.json, of benchmarks/results alone
	$(BIN)/python benchmarks/ledger.py

minimum: .venv/bin/python  ## the tests with the oldest versions that pyproject.toml allows, in .venv-minimum
	@test -x .venv-minimum/bin/python || $(PYTHON) -m venv .venv-minimum
	.venv-minimum/bin/python -m pip install -q -c constraints-minimum.txt -e '.[export,rl,tensorboard]' \
	  'pytest>=8' 'pytest-xdist>=3.6' 'hypothesis>=6.100' import-linter
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 .venv-minimum/bin/python -m pytest -n $(JOBS) --dist loadgroup -m "not slow" $(ARGS)

release: .venv/bin/python  ## wheel and sdist in dist/, checked; the wheel runs the demo in a fresh environment
	rm -rf dist build/release && mkdir -p build/release
	$(BIN)/python -m venv build/release/tools
	build/release/tools/bin/python -m pip install -q build twine
	build/release/tools/bin/python -m build -o dist .
	build/release/tools/bin/python -m twine check --strict dist/*
	$(BIN)/python -m venv build/release/env
	build/release/env/bin/python -m pip install -q -c constraints.txt dist/*.whl
	cd build/release && OMP_NUM_THREADS=1 env/bin/archgrad demo --out demo --seed 0 $(ARGS)
	@ls -l dist

fuzz: .venv/installed  ## malformed files, over 10,000, and an hour of random networks to slim; other ones each time
	ARCHGRAD_FUZZ=$${ARCHGRAD_FUZZ:-1300} $(BIN)/python -m pytest tests/properties/test_hostile_files.py $(ARGS)
	$(BIN)/python tests/properties/fuzz_slim.py --seconds $${ARCHGRAD_FUZZ_SECONDS:-3600} --seed $$(date +%s)

docs: .venv/installed  ## the documentation, into site/
	$(BIN)/mkdocs build --strict

clean:  ## remove .venv, caches and built files; runs/ stays
	rm -rf .venv .venv-minimum site build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find src tests benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/bin/python:
	@if [ -z "$(PYTHON)" ]; then echo "archgrad needs Python 3.11 or newer, and none was found: install one, or name it with make PYTHON=..." >&2; exit 2; fi
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit(f"archgrad needs Python 3.11 or newer; $(PYTHON) is {v[0]}.{v[1]}: name another with make PYTHON=...")'
	@echo "== making .venv with $$($(PYTHON) --version) =="
	@$(PYTHON) -m venv .venv || { rm -rf .venv; echo "python -m venv failed; some systems keep it in a package of its own, such as python3-venv" >&2; exit 2; }

.venv/installed: pyproject.toml constraints.txt | .venv/bin/python
	@echo "== installing archgrad and its tools into .venv: minutes the first time, torch is large =="
	$(BIN)/python -m pip install -c constraints.txt -e '.[dev]'
	@touch $@

# timm's models and the layers of einops are test subjects only, and of axe the script is read that looks for barriers in pages. Without their dependencies, so that torch stays what constraints.txt says.
.venv/timm: .venv/installed
	@echo "== installing timm, einops and axe, for the tests on models and pages =="
	@if $(BIN)/python -m pip install -q --retries 1 -c constraints.txt huggingface_hub && \
	    $(BIN)/python -m pip install -q --retries 1 --no-deps timm==1.0.31 torchvision==0.28.0 einops==0.8.2; \
	then touch $@; else echo "timm could not be installed: the tests that need it will be skipped"; fi
	@$(BIN)/python -m pip install -q --retries 1 --no-deps axe-playwright-python==0.1.8 || \
	    echo "axe could not be installed: the tests that need it will be skipped"
