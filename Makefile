# Everything starts here: `make demo` and `make test` need Debian, Python 3.11 and a C++ compiler.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

WORKERS ?= 2
PYTEST := $(BIN)/python -m pytest -n $(WORKERS)

.PHONY: demo quick test test-all test-cluster gpu-check fuzz lint audit clean

demo: $(STAMP)  ## render data, train on 2 ranks (or all GPUs), evaluate on the unseen night, report
	$(BIN)/ppar-dist demo --out demo

quick: $(STAMP)  ## style and the unit tests, which start no process, but for the slowest modules
	$(BIN)/ruff check .
	$(PYTEST) -m 'unit and not slow' --hypothesis-profile quick tests/unit

test: $(STAMP) lint  ## every module, with real processes and ranks
	$(PYTEST) -m 'unit or process'

test-all: $(STAMP) lint  ## also whole jobs, faults, kills, steps on a pretended GPU and fuzzing: everything but the cluster
	$(PYTEST)

test-cluster: export PPAR_CLUSTER_TESTS = 1
test-cluster: $(STAMP)  ## the job under real Slurm, in a container, under Prometheus; installs them (root)
	tests/cluster/install.sh
	$(BIN)/pip install --quiet --editable '.[test,cluster]'
	$(BIN)/python -m pytest tests/cluster

gpu-check: $(STAMP)  ## on a machine with a GPU: what only a GPU can show, in 20 minutes; the report goes to docs/gpu
	$(BIN)/python -m benchmarks.gpu_check

fuzz: export PPAR_FUZZ_EXAMPLES ?= 20000
fuzz: $(STAMP)  ## search for inputs that break readers; PPAR_FUZZ_EXAMPLES: how many for each test
	$(BIN)/python -m pytest tests/fuzz

lint: $(STAMP)  ## style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

audit: $(STAMP)  ## known vulnerabilities among the dependencies; ends with 2 where no service can be asked
	$(PYTHON) -m venv $(VENV)-audit
	$(VENV)-audit/bin/pip install --quiet 'pip-audit>=2.9,<3'
	$(BIN)/python .ci/audit.py $(VENV)-audit/bin/pip-audit

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[test]'
	touch $@

clean:  ## what make made, but for runs and shards
	rm -rf $(VENV) $(VENV)-audit demo build *.egg-info
