# Needs Python 3.11 or newer, make and a package registry; everything else goes into .venv.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
FLEET  := $(VENV)/fleet
CORES  := $(or $(shell getconf _NPROCESSORS_ONLN),2)
# How many test files run at once: one more than the cores, since at any time one of them waits.
JOBS   ?= $(shell expr $(CORES) + 1)
DATA   ?= $(or $(BRAIN_DATA_DIR),build/demo/brain)

# Where it is set, each of the thousands of processes that the tests start compiles every module anew.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help docs demo serve test slow quick soak crash-table fleet check bench bench-learning bench-learning-quick lock check-wheels clean

help: ## what each target does
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 24

demo: $(VENV)/.demo ## a simulated robot records, learns through the daemon and is driven by what it learned (< 6 min)
	$(BIN)/python -m tests.e2e.demo

serve: $(VENV)/.runtime ## the daemon alone, on what `make demo` learned (or DATA=/your/dir)
	$(BIN)/brain serve --data-dir $(DATA)

test: $(VENV)/.dev ## every check, and every test but the longest (about 20 minutes on two cores)
	$(MAKE) check
	$(BIN)/python -m pytest -n $(JOBS) -m "not slow and not soak and not demo and not wheels"

slow: $(VENV)/.dev $(FLEET)/.installed ## the tests that compile or train for most of a minute
	$(BIN)/python -m pytest -n $(JOBS) -m "slow or wheels"

quick: $(VENV)/.dev ## the tests that take seconds
	$(BIN)/python -m pytest -n $(JOBS) -m "not long and not slow and not soak and not demo and not wheels"

# By test and not by file: two thirds of them are one file's, and share nothing.
soak: $(VENV)/.dev ## hundreds of kills, power cuts and damaged bytes, and the demo (a quarter of an hour)
	$(BIN)/python -m pytest -n $(JOBS) --dist=worksteal -m soak
	$(BIN)/python -m pytest -m demo

crash-table: $(VENV)/.dev ## the same faults, counted: writes docs/crash-table.md
	$(BIN)/python -m tests.faults

fleet: $(FLEET)/.installed ## Apache Beam and KFP for cloud-trainer convert and pipeline, in an environment of their own

docs: $(VENV)/.dev ## the reference pages of docs/, made from the code: HTTP paths, Python names, settings
	$(BIN)/python -m tests.docs.reference

check: $(VENV)/.dev ## format, lint, types, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.dev ## figures beside their floors, also written to build/bench.json
	$(BIN)/python -m tests.bench

bench-learning: $(VENV)/.dev ## what the model learns beside a GRU and an MLP of its size (hours; resumes; build/learning)
	$(BIN)/python -m tests.bench.learning --jobs $(CORES)

bench-learning-quick: $(VENV)/.dev ## its ten-minute subset
	$(BIN)/python -m tests.bench.learning --quick --jobs $(CORES)

lock: $(VENV)/.dev ## resolve the newest versions that Python 3.11 and 3.13 both have
	$(BIN)/python deploy/locks/lock.py

check-wheels: $(VENV)/.dev ## every runtime dependency has an aarch64 wheel for CPython 3.11 and 3.13
	$(BIN)/python deploy/locks/check_wheels.py

clean: ## remove the virtual environment and what was built
	rm -rf $(VENV) build

# A stamp a set of dependencies, each holding the smaller ones: the second run finds it newer than its lock and
# skips the set-up.
$(VENV)/pyvenv.cfg:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; point PYTHON at one: make PYTHON=python3.11 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

define install
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r $<
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $(1)
endef

$(VENV)/.runtime: deploy/locks/runtime.txt pyproject.toml | $(VENV)/pyvenv.cfg
	$(call install,$@)
$(VENV)/.demo: deploy/locks/demo.txt pyproject.toml | $(VENV)/pyvenv.cfg
	$(call install,$@ $(VENV)/.runtime)
$(VENV)/.dev: deploy/locks/dev.txt pyproject.toml | $(VENV)/pyvenv.cfg
	$(call install,$@ $(VENV)/.demo $(VENV)/.runtime)
# Apart, since Beam refuses the protobuf and NumPy of the others; by uv, which takes seconds where pip takes minutes.
$(FLEET)/.installed: deploy/locks/fleet.txt pyproject.toml | $(VENV)/.dev
	$(BIN)/python -m uv venv --quiet --clear --python $(BIN)/python $(FLEET)
	$(BIN)/python -m uv pip install --quiet --python $(FLEET)/bin/python -r $<
	$(BIN)/python -m uv pip install --quiet --python $(FLEET)/bin/python --no-deps --editable .
	@touch $@
