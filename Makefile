# Every target works from a bare clone: it makes .venv, installs the pinned dependencies it needs, then runs.
PYTHON ?= python3
VENV := .venv
EVAL := .venv-eval
VIEWER := embedding-atlas==0.22.0
BIN := $(VENV)/bin
comma := ,
# Two processes; the tests with Ray, the longest group, begin at once in the first.
PAIR := -n 2 --dist loadgroup --no-loadscope-reorder

# Workers share the cores: more threads than cores make everything several times slower.
export OMP_NUM_THREADS ?= 1
export RAY_USAGE_STATS_ENABLED ?= 0
# Without compiled files every process compiles its imports again: 3 s of CPU for torch alone.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup dev demo test test-fast test-cluster test-hosts test-nightly test-gpu test-eval coverage lint tables notebooks bench bench-gpu compat dist clean

# install(folder, extras): uv takes half a minute where pip takes many; where uv cannot (a mirror that pip alone knows),
# pip does it.
define install
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed (make PYTHON=...)")'
	test -x $(1)/bin/python || $(PYTHON) -m venv $(1)
	{ $(1)/bin/python -m pip install --quiet --constraint constraints.txt uv && \
	  $(1)/bin/uv pip install --quiet --python $(1)/bin/python --constraint constraints.txt --editable '.[$(2)]'; } || \
	$(1)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[$(2)]'
endef

# The page of explore.py's viewer; what its own server needs is not used, and would bring another torch.
define viewer
	{ $(1)/bin/uv pip install --quiet --python $(1)/bin/python --no-deps $(VIEWER); } || \
	$(1)/bin/python -m pip install --quiet --no-deps $(VIEWER)
endef

setup: $(VENV)/.ray  ## what the commands need

dev: $(VENV)/.dev  ## and what developing needs

$(VENV)/.ray: pyproject.toml constraints.txt
	$(call install,$(VENV),ray$(comma)explore)
	$(call viewer,$(VENV))
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt
	$(call install,$(VENV),dev)
	$(call viewer,$(VENV))
	@touch $(VENV)/.ray $@

$(EVAL)/.eval: pyproject.toml constraints.txt
	$(call install,$(EVAL),eval$(comma)test)
	@touch $@

demo: setup  ## synthesise sounds, preprocess, pretrain, probe: 4 minutes with AVX-512, 5 with AVX2 alone, on 2 cores
	$(BIN)/python pipelines/demo.py

test: dev  ## with a real Ray and a real MLflow, in two processes; all but `make test-cluster` and `make test-hosts`
	$(BIN)/python -m pytest $(PAIR) -m 'not cluster and not hosts' --durations=20

test-cluster: dev  ## jobs with Ray that lose processes, workers or machines
	$(BIN)/python -m pytest -m cluster

test-hosts: dev  ## jobs on several hosts, made of namespaces (root, iproute2), and a real Slurm (slurmctld, slurmd, munge)
	AJEPA_NIGHTLY=1 $(BIN)/python -m pytest -m hosts

test-fast: dev  ## without Ray, without processes of their own, and without what takes five seconds or more
	$(BIN)/python -m pytest $(PAIR) -m 'not ray and not process and not slow'

test-nightly: dev  ## the whole suite with five times as many examples of each property
	AJEPA_NIGHTLY=1 $(BIN)/python -m pytest $(PAIR)

test-gpu:  ## tests that need a CUDA device; torch, numpy, pyarrow, safetensors, pytest and pytest-timeout are enough
	$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) -m pytest --noconftest tests/gpu

test-eval: $(EVAL)/.eval  ## HEAR's and X-ARES's own checkers, in an environment of their own: HEAR needs TensorFlow
	$(EVAL)/bin/python -m pytest -m evaluation tests/test_hear.py tests/test_xares.py

compat: dev  ## the wheel with the oldest and the newest torch, in .venv-compat (10 GB): load, embed, ONNX, resume; exports in transformers 4 and 5
	$(BIN)/python tests/compat/check_torch.py
	$(BIN)/python tests/compat/check_transformers.py

dist: dev  ## wheel and sdist in dist/, checked by twine
	rm -rf dist
	$(BIN)/uv build --quiet --out-dir dist
	$(BIN)/twine check --strict dist/*

coverage: dev  ## the whole test suite; lines of ajepa/ and pipelines/ that it runs
	$(BIN)/python -m pytest $(PAIR) --cov=ajepa --cov=pipelines --cov-report=term

lint: dev  ## style, types, and the rule of which package may import which
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

tables: setup  ## the tables of results in the pages, from notebooks/results/*.json
	$(BIN)/python -m ajepa.experiments.page

notebooks: dev  ## run the notebooks from top to bottom and write their outputs in place
	$(BIN)/python notebooks/execute.py

bench: dev  ## ratios against a floor or a peer in the same run: about an hour on 2 cores (AJEPA_BENCH_CLIPS=500 for less)
	$(BIN)/python -m pytest tests/benchmarks -m '' --override-ini 'addopts=-q -s --import-mode=importlib --show-capture=no' --override-ini 'python_files=bench_*.py'

bench-gpu:  ## the training step on a GPU; needs only torch, numpy and pyarrow, so it takes the python there is
	PYTHONPATH=. $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) tests/benchmarks/bench_gpu.py

clean:
	rm -rf $(VENV) $(EVAL) .venv-compat dist demo
