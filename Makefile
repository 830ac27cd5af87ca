# make demo    a real model from its checkpoint to int4, proven, talking, measured
# make test    lint, types and tests
# make bench   the demo's bundle, measured at length
# make test-gpu  the tests that need an NVIDIA GPU; says what is missing, and fetches nothing where .venv is there
# make clean   remove what make made here (the fetched checkpoint stays in the cache)
# Needs Python >= 3.10 and make. With PYTHON=python3.12 another interpreter; with TORCH_INDEX=URL another index for torch alone
# (https://download.pytorch.org/whl/cpu has it without CUDA, which is smaller).

PYTHON ?= python3
TORCH_INDEX ?=

BUNDLE := smollm2-135m.bundle
FIGURES := smollm2-135m-bench.json
BIN := .venv/bin
EDGEGEN := $(BIN)/edgegen
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
TORCH := $(shell grep '^torch==' constraints.txt)

.PHONY: demo test test-gpu lint bench clean
.DELETE_ON_ERROR:

demo: $(BUNDLE)/manifest.json
	$(EDGEGEN) verify $(BUNDLE)
	$(EDGEGEN) generate $(BUNDLE) --chat --prompt "What is the capital of France?"
	$(EDGEGEN) bench $(BUNDLE) --prompt-length 16 --prompt-length 128 --new-tokens 32 --repeats 3 --json $(FIGURES)
	@echo
	@echo "bundle:      $(CURDIR)/$(BUNDLE)"
	@echo "figures:     $(CURDIR)/$(FIGURES)"
	@echo "checkpoint:  $${XDG_CACHE_HOME:-$$HOME/.cache}/edgegen/checkpoints"
	@echo "talk to it:  $(EDGEGEN) generate $(BUNDLE) --chat"

# A bundle appears whole or not at all, so its manifest is proof enough that it is there.
$(BUNDLE)/manifest.json: | .venv/installed
	$(EDGEGEN) export export/smollm2_135m.py -o $(BUNDLE) --force

test: lint
	$(BIN)/python -m pytest -q -n auto --maxprocesses 4 --dist loadgroup

# What is installed is tested: a newer pyproject.toml is no reason to fetch anything on a machine without a network.
test-gpu: $(if $(wildcard $(BIN)/python),,.venv/installed-dev)
	$(BIN)/python benchmarks/on_gpu/contract.py

lint: .venv/installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

bench: $(BUNDLE)/manifest.json
	$(EDGEGEN) bench $(BUNDLE) --json $(FIGURES)

# torch first and alone: its index must not be asked for anything else.
.venv/installed: pyproject.toml constraints.txt hatch_build.py $(wildcard edgegen/native/*.[ch])
	$(PYTHON) -m venv .venv
	$(INSTALL) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $(TORCH)
	$(INSTALL) -e ".[cpu,export]"
	touch $@

.venv/installed-dev: .venv/installed
	$(INSTALL) -e ".[cpu,export,train,dev]"
	touch $@

clean:
	rm -rf .venv build dist $(BUNDLE) $(FIGURES)
	find edgegen export tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis
