# Two commands do everything on a fresh machine: `make demo` and `make test`. The rest is for those who change the code.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo test explore miniatures lint format protos pages docs bench performance dist compose-test clean

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP)  ## Install everything into .venv

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or later is needed as $(PYTHON); name another with: make PYTHON=python3 $(MAKECMDGOALS)"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV): some 2.5 GB, a few minutes the first time; no output until it is done"
	@$(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt --editable '.[dev]'
	@# BackPACK names torchvision, and uses it in its examples alone. With a torch for CPUs only, which no torchvision on
	@# the package index is built for, it cannot be imported, and neither can Lightning then.
	@$(BIN)/python -m pip uninstall --disable-pip-version-check --quiet --yes torchvision
	@touch $@

demo: install  ## Solve a Poisson equation and train on MNIST through daemons, and by Adam
	$(BIN)/tngd demo --out results/demo --overwrite

test: install  ## Run the test suite (under 10 minutes on 2 cores)
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder --durations 10

explore: install  ## Try 20,000 other random models and loops (20 minutes)
	$(BIN)/python -m pytest --numprocesses 2 -m hypothesis --hypothesis-profile explore --timeout 0

miniatures: install  ## Run the miniature of every experiment (some minutes)
	$(BIN)/tngd reproduce all --quick --out results/miniatures --overwrite

lint: install  ## Check style, types, imports and the documentation
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

format: install  ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

protos: install  ## Regenerate the stubs next to their sources
	$(BIN)/python tools/generate_stubs.py

pages: install  ## Render the generated parts of docs/ from the code
	$(BIN)/python -m tools.pages

docs: install  ## Build the documentation site into site/, strictly
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: install  ## Run all benchmarks into results/bench (15 minutes)
	@failed=; for name in $$($(BIN)/tngd bench list); do \
		$(BIN)/tngd bench $$name --json results/bench/$$name.json || failed="$$failed $$name"; \
	done; test -z "$$failed" || { echo "failed:$$failed"; exit 1; }

performance: bench  ## Run all benchmarks and render docs/performance.md
	$(BIN)/tngd performance results/bench --out docs/performance.md

dist: install  ## Build wheel and sdist into dist/
	$(BIN)/python -m build

compose-test: install  ## Run docker compose for real, where an engine is present
	deploy/compose-test.sh

clean:  ## Remove what the commands above made
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
