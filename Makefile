# The two commands of the README are `make demo` and `make test`; each installs what it needs first.
PYTHON ?= python3
SEED ?= 0
# URL of another package index for torch; empty: pip's own.
TORCH_INDEX ?=

# Threads that wait by spinning starve each other where another program shares the cores: a step took ten times as long.
export OMP_WAIT_POLICY ?= PASSIVE

PY := .venv/bin/python
PIP := $(PY) -m pip --disable-pip-version-check install --quiet
INSTALLED := .venv/.installed

.PHONY: demo test test-faults test-slow test-all lint lock wheel clean

demo: $(INSTALLED)
	$(PY) data/scripts/make_demo.py --seed $(SEED)
	$(PY) data/scripts/make_demo_parts.py --seed $(SEED)
	$(PY) -m llava_train +recipe=demo run.seed=$(SEED) $(if $(filter-out 0,$(SEED)),run.name=demo-seed$(SEED))

test: $(INSTALLED)
	$(PY) -m pytest

# Every fault that the checkpoints are meant to stand, at length.
test-faults: $(INSTALLED)
	$(PY) -m pytest tests/faults -m "slow or not slow"

test-slow: $(INSTALLED)
	$(PY) -m pytest -m "slow and not gpu and not slurm"

test-all: test test-slow

lint: $(INSTALLED)
	.venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/mypy && .venv/bin/lint-imports

wheel: $(INSTALLED)
	$(PY) -m build --wheel

# Needs pip-tools. torch stays out of the hashes: each platform brings its own build of it.
lock:
	pip-compile --quiet --generate-hashes --unsafe-package torch --no-emit-index-url --no-emit-find-links \
	  --strip-extras --extra demo --extra dev --constraint requirements-torch.txt --output-file requirements.lock pyproject.toml

$(INSTALLED): requirements-torch.txt requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) --requirement requirements-torch.txt
	$(PIP) --no-deps --require-hashes --requirement requirements.lock
	$(PIP) --no-deps --editable .
	touch $@

clean:
	rm -rf runs data/cache dist build
