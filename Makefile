# Everything happens in .venv, made on first use with the first Python >= 3.11 that runs.
# Choose another with:  make setup PYTHON=/path/to/python

VENV  := .venv
BIN   := $(VENV)/bin
STAMP := $(VENV)/.installed
OLDEST := .venv-oldest
RAY := .venv-ray
COMPATIBILITY := tests/api tests/export/test_packed.py tests/export/test_versions.py tests/export/test_artifact.py \
	tests/quantization/test_convert.py

PYTHON ?=
CANDIDATES := $(or $(PYTHON),python3.13 python3.12 python3.11 python3 python)

# Tests start dozens of processes, each of which would compile the package anew.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help setup run test test-docs test-slow test-oldest test-ray lint typecheck bench docs clean

help: ## Show this list
	@grep -E '^[a-z-]+:.*## ' Makefile | sed 's/:.*## /:/' | \
		while IFS=: read -r name text; do printf '  %-10s %s\n' "$$name" "$$text"; done

setup: $(STAMP) ## Create .venv with the exact versions of constraints.txt

run: $(STAMP) ## Run the default recipe; overrides in ARGS="key=value ..."
	$(BIN)/python -m hast_lightning $(ARGS)

# A process a core with one thread each: most tests are too small for more.
test: $(STAMP) ## Run the fast tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder \
		--durations 20

test-docs: $(STAMP) ## Run every command of README and documentation, and the notebook
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m slow -n auto --maxprocesses 2 --durations 5 tests/docs

test-slow: $(STAMP) ## Run the slow tests
	$(BIN)/python -m pytest -q -m slow

# The floors of pyproject.toml; what they need themselves is the newest that fits.
test-oldest: $(STAMP) ## Run a short set of tests with the oldest supported versions
	$(BIN)/uv venv --quiet --allow-existing --python $(BIN)/python $(OLDEST)
	$(BIN)/uv pip install --python $(OLDEST)/bin/python --resolution lowest-direct \
		-e '.[onnx,paper,tensorboard,timm]'
	$(BIN)/uv pip install --python $(OLDEST)/bin/python pytest pytest-timeout pytest-xdist
	OMP_NUM_THREADS=1 $(OLDEST)/bin/python -m pytest -q -n auto --maxprocesses 8 --dist loadfile \
		-o filterwarnings=default $(COMPATIBILITY)

# The packages that Ray's launcher holds back are left out of the exact versions.
test-ray: $(STAMP) ## Run the tests of launchers with Ray, which needs an environment of its own
	$(BIN)/uv venv --quiet --allow-existing --python $(BIN)/python $(RAY)
	grep -vE '^(cloudpickle|joblib|python-dateutil)==' constraints.txt > $(RAY)/constraints.txt
	$(BIN)/uv pip install --python $(RAY)/bin/python -c $(RAY)/constraints.txt \
		-e '.[ray,sweeps]' pytest pytest-timeout
	OMP_NUM_THREADS=1 $(RAY)/bin/python -m pytest -q -rs tests/test_launchers.py

lint: $(STAMP) ## Check style and format
	$(BIN)/ruff check src tests benchmarks experiments docs
	$(BIN)/ruff format --check src tests benchmarks experiments docs

typecheck: $(STAMP) ## Check the types of src
	$(BIN)/mypy

bench: $(STAMP) ## Time the steps of training
	$(BIN)/python -m benchmarks

docs: $(STAMP) ## Build the documentation into site/; a warning is an error
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet -d site/doctrees docs site/html
	@echo "open site/html/index.html"

clean: ## Delete built packages, the site and caches; .venv and outputs stay
	rm -rf dist build site .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

# A candidate counts only if it runs: version managers put shims on the path
# that exist and fail. --clear replaces an environment whose Python has gone.
$(BIN)/python:
	@for python in $(CANDIDATES); do \
		if "$$python" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' \
			>/dev/null 2>&1; then \
			echo "creating $(VENV) with $$("$$python" --version) ($$python)"; \
			exec "$$python" -m venv --clear $(VENV); \
		fi; \
	done; \
	echo "None of these is a working Python >= 3.11 with venv and ensurepip: $(CANDIDATES)" >&2; \
	echo "Name one with: make setup PYTHON=/path/to/python" >&2; \
	exit 1

# uv installs faster than pip; where it cannot run or reach an index, pip does the same. As pip
# does, it compiles: where Python may not write bytecode, each import of torch would take seconds.
# The interpreter is order-only: its own date says nothing about what is installed.
$(STAMP): pyproject.toml constraints.txt | $(BIN)/python
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt uv \
		|| echo "uv could not be installed" >&2
	@if $(BIN)/uv pip install --compile-bytecode --python $(BIN)/python \
		-c constraints.txt --build-constraints constraints.txt -e '.[dev]'; then :; \
	else \
		echo "uv did not succeed; trying pip" >&2; \
		$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev]'; \
	fi
	@touch $(STAMP)
