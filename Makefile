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

RUN_SUFFIX := $(if $(filter-out 0,$(SEED)),-seed$(SEED))
DEMO := runs/demo$(RUN_SUFFIX)/onevision/hf
ADAPTED := runs/demo_lora$(RUN_SUFFIX)
ADAPT = $(PY) -m llava_train +recipe=demo_lora run.seed=$(SEED) model.init=$(DEMO)
ASK = $(PY) -m llava_train evaluate data.file=data/mixtures/demo_lora_held_out.yaml data.root=data/cache/demo/seed$(SEED) \
  batch_size=100 max_new_tokens=10
ASKED := $(ADAPTED)/evaluations

.PHONY: demo demo-lora test test-faults test-slow test-slurm test-all gpu lint lock wheel clean

demo: $(INSTALLED)
	$(PY) data/scripts/make_demo.py --seed $(SEED)
	$(PY) data/scripts/make_demo_parts.py --seed $(SEED)
	$(PY) -m llava_train +recipe=demo run.seed=$(SEED) run.name=demo$(RUN_SUFFIX)

# The model of the demo before and after: an adapter, the whole model tuned alike, an adapter of shuffled answers.
demo-lora: $(INSTALLED)
	test -d $(DEMO) || $(MAKE) demo
	$(PY) data/scripts/make_demo.py --seed $(SEED)
	$(PY) data/scripts/make_demo_domain.py --seed $(SEED)
	$(ADAPT) run.dir=$(ADAPTED)
	$(ADAPT) run.dir=$(ADAPTED)-full '~stages.domain.lora' \
	  'stages.domain.learning_rate={vision_tower: 5e-4, projector: 1e-3, language_model: 1e-3}'
	$(ADAPT) run.dir=$(ADAPTED)-shuffled stages.domain.mixture=demo_lora_shuffled
	$(ASK) model.init=$(DEMO) out=$(ASKED)/before
	$(ASK) model.init=$(DEMO) adapter=$(ADAPTED)/domain/adapter out=$(ASKED)/adapter
	$(ASK) model.init=$(ADAPTED)-full/domain/hf out=$(ASKED)/full_tuning
	$(ASK) model.init=$(DEMO) adapter=$(ADAPTED)-shuffled/domain/adapter out=$(ASKED)/shuffled_answers
	$(PY) -m llava_train compare before=$(ASKED)/before \
	  after=[$(ASKED)/adapter,$(ASKED)/full_tuning,$(ASKED)/shuffled_answers]

# Two processes: most tests wait for files, ranks or one thread.
test: $(INSTALLED)
	$(PY) -m pytest --numprocesses 2 --dist loadfile

# Every fault that the checkpoints are meant to stand, at length.
test-faults: $(INSTALLED)
	$(PY) -m pytest tests/faults -m "slow or not slow"

test-slow: $(INSTALLED)
	$(PY) -m pytest -m "slow and not gpu and not slurm"

# On a SLURM cluster that it starts on this machine: root, slurm-wlm and munge; it says so where they are not there.
test-slurm: $(INSTALLED)
	$(PY) -m pytest -m slurm tests/slurm

test-all: test test-slurm test-slow

# On a machine with a CUDA GPU: is it right, what does it hold, how fast is it.
PART ?= correct
gpu: $(INSTALLED)
	$(PY) benchmarks/gpu.py $(PART)

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
