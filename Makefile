# Two commands do everything on a fresh machine: `make demo` and `make test`. The rest is for those who change the code.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo test explore lint format protos pages bench performance compose-test clean

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP)  ## Install everything into .venv

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or later is needed as $(PYTHON); name another with: make PYTHON=python3 $(MAKECMDGOALS)"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV): some 2 GB, a few minutes the first time; no output until it is done"
	@$(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt --editable '.[dev]'
	@# BackPACK names torchvision, and uses it in its examples alone. Beside a torch for CPUs only, which no torchvision on
	@# the package index is built for, it cannot be imported, and neither can Lightning then.
	@$(BIN)/python -m pip uninstall --disable-pip-version-check --quiet --yes torchvision
	@touch $@

demo: install  ## Start a daemon, train the reference CNN on MNIST through it, Adam beside it, and show the result
	$(BIN)/tngd demo --out results/demo --overwrite

test: install  ## Run the test suite, two files at a time, with the same examples every time (under 10 minutes on 2 cores)
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder --durations 10

explore: install  ## Try the property tests with ten times as many examples, and 20,000 random models and loops, other ones each time (15 minutes on 2 cores)
	$(BIN)/python -m pytest --numprocesses 2 -m hypothesis --hypothesis-profile explore --timeout 0

lint: install  ## Check style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install  ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

protos: install  ## Regenerate the stubs beside their sources
	$(BIN)/python tools/generate_stubs.py

pages: install  ## Render the tables of docs/curvature.md and docs/errors.md from the code
	$(BIN)/python -m tools.pages

bench: install  ## Run all benchmarks; ratios go to results/bench (about 15 minutes on 2 cores)
	@failed=; for name in $$($(BIN)/tngd bench list); do \
		$(BIN)/tngd bench $$name --json results/bench/$$name.json || failed="$$failed $$name"; \
	done; test -z "$$failed" || { echo "failed:$$failed"; exit 1; }

performance: bench  ## Run all benchmarks and render docs/performance.md from them
	$(BIN)/tngd performance results/bench --out docs/performance.md

compose-test: install  ## Run docker compose for real, where an engine is present
	deploy/compose-test.sh

clean:  ## Remove what the commands above made
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
