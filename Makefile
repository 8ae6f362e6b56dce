# make demo   three institutions teach one model, then look at the pictures (about ten minutes on two cores)
# make test   linters, type checker, import layers and every test
# make pilot  a federation of separate processes on this machine: keys, TLS, vaults, stewards, a private run, a picture
# DEVICE=cuda on any line installs PyTorch for an NVIDIA GPU instead of the CPU
PYTHON ?= python3
DEVICE ?= cpu
VENV := .venv
BIN := $(VENV)/bin
TORCH := 2.13.0

.PHONY: demo pilot test lint types layers tests fetch clean

demo: $(VENV)/.ready-$(DEVICE)
	$(BIN)/darkroom-sim run three-institutions --again

pilot: $(VENV)/.ready-$(DEVICE)
	$(BIN)/darkroom-sim pilot pilot --again

test: lint types layers tests

lint: $(VENV)/.ready-$(DEVICE)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.ready-$(DEVICE)
	$(BIN)/mypy

layers: $(VENV)/.ready-$(DEVICE)
	$(BIN)/lint-imports

tests: fetch
	$(BIN)/pytest

# the tests themselves need no network
fetch: $(VENV)/.ready-$(DEVICE)
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

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build *.egg-info
