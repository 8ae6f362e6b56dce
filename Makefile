PYTHON ?= python3
DEVICE ?= cpu
VENV := .venv
BIN := $(VENV)/bin
TORCH := 2.13.0
WORKERS ?= 2

.PHONY: help demo pilot test storm lint types layers tests fetch clean

help: ## this list; DEVICE=cuda on any line installs PyTorch for an NVIDIA GPU instead of the CPU
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 9

demo: $(VENV)/.ready-$(DEVICE) ## three institutions teach one model, then look at the pictures (about ten minutes on two cores)
	$(BIN)/darkroom-sim run three-institutions --again

pilot: $(VENV)/.ready-$(DEVICE) ## a federation of separate processes here: keys, TLS, vaults, stewards, a private run, a picture
	$(BIN)/darkroom-sim pilot pilot --again

test: lint types layers tests ## linters, type checker, import layers and every test

lint: $(VENV)/.ready-$(DEVICE) ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.ready-$(DEVICE) ## mypy, strict
	$(BIN)/mypy

layers: $(VENV)/.ready-$(DEVICE) ## which package may import which
	$(BIN)/lint-imports

storm: fetch ## thirty rounds of five sites under faults of every kind; before a release (about half an hour)
	DARKROOM_CHAOS_ROUNDS=30 $(BIN)/pytest --numprocesses=0 tests/federation/test_chaos.py -s

# federations have both cores to themselves: two at once keep each other waiting beyond what Flower's processes put up with
tests: fetch ## every test, WORKERS=2 at a time where they only compute
	$(BIN)/pytest --numprocesses=$(WORKERS) --ignore=tests/federation --durations=15 --durations-min=5
	$(BIN)/pytest tests/federation --durations=15 --durations-min=5

fetch: $(VENV)/.ready-$(DEVICE) ## the demonstration's pictures, so that tests need no network
	$(BIN)/darkroom-sim fetch

# PyTorch's CPU build has no CUDA libraries of several gigabytes; where pip cannot find that build, the plain one is taken
$(VENV)/.ready-cpu: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet "torch==$(TORCH)+cpu" || $(BIN)/pip install "torch==$(TORCH)"
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[simulation,ray,dev]"
	touch $@

$(VENV)/.ready-cuda: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install "torch==$(TORCH)"
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[simulation,ray,dev]"
	touch $@

clean: ## removes what make installed and the tools' caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build *.egg-info
