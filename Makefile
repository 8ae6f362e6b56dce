PYTHON ?= python3
DEVICE ?= cpu
VENV := .venv
BIN := $(VENV)/bin
TORCH := 2.13.0
WORKERS ?= 2

.PHONY: help demo pilot test storm lint types layers tests computing federations fetch clean

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

# two lanes: federations mostly wait, one after another, since two at once keep each other waiting beyond what Flower's
# processes put up with; what computes stands back for them (nice) and has whatever they leave of the cores
tests: fetch ## every test: one federation at a time, beside WORKERS=2 at a time of those that compute
	@$(MAKE) --no-print-directory --jobs=2 computing federations

computing:
	nice -n 19 $(BIN)/pytest --numprocesses=$(WORKERS) --ignore=tests/federation --durations=10 --durations-min=5

# shown in one piece, so that the two lanes' lines do not mix
federations:
	@$(BIN)/pytest tests/federation --durations=10 --durations-min=5 > .cache/federations.log 2>&1; \
	code=$$?; cat .cache/federations.log; exit $$code

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
