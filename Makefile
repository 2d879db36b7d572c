# Every target works from a bare clone: it makes .venv, installs the pinned dependencies, then runs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# Workers share the cores: more threads than cores make everything several times slower.
export OMP_NUM_THREADS ?= 1
export RAY_USAGE_STATS_ENABLED ?= 0

.PHONY: setup demo test lint bench bench-gpu clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed (make PYTHON=...)")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: setup  ## synthesise sounds, preprocess, pretrain, probe: about ten minutes on two cores
	$(BIN)/python pipelines/demo.py

test: setup  ## the whole test suite, with a real Ray and a real MLflow
	$(BIN)/python -m pytest

lint: setup  ## style, types, and the rule of which package may import which
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: setup  ## ratios against a floor or a peer in the same run: about 45 minutes on 2 cores (AJEPA_BENCH_CLIPS=500 for less)
	$(BIN)/python -m pytest tests/benchmarks -m '' --override-ini 'addopts=-q -s --import-mode=importlib --show-capture=no' --override-ini 'python_files=bench_*.py'

bench-gpu:  ## the training step on a GPU; needs only torch, numpy and pyarrow, so it takes the python there is
	PYTHONPATH=. $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) tests/benchmarks/bench_gpu.py

clean:
	rm -rf $(VENV) demo
