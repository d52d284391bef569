# The few commands. Everything a target needs it sets up by itself.

SHELL := /bin/sh
PYTHON ?= python3
DATA ?= .data
PORT ?= 8080
WORKERS ?= 2
ENGINE ?= auto
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help demo up test check bench images status logs db-shell clean clean-all

help:            ## Show this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: .venv/ready ## Everything from nothing: start, deploy, invoke, show the records, stop
	@scripts/demo.sh

up: .venv/ready  ## Run the platform on this machine; Ctrl-C stops it
	@mkdir -p "$(DATA)" && $(BIN)/containerpub up --data "$(DATA)" --port $(PORT) --workers $(WORKERS) --engine $(ENGINE) \
		2>&1 | tee -ia "$(DATA)/up.log"

test: .venv/dev  ## Check and test everything
	@scripts/test.sh

check: .venv/dev ## Lint, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/dev ## Measure the figures that docs/reference/bench.md explains
	@scripts/with_engine.sh $(BIN)/python -m bench

images:          ## Pull the base images, or make stand-ins for them
	@scripts/images.sh

status:          ## Ask the platform of `make up` how it is
	@url=$$(cat "$(DATA)/api.url" 2>/dev/null) || { echo "nothing runs on $(DATA): make up"; exit 1; }; \
		for what in health ready; do \
			"$(PYTHON)" -c 'import sys, urllib.error, urllib.request as r; \
			print(r.urlopen(sys.argv[1], timeout=5).read().decode())' "$$url/api/$$what"; done

logs:            ## Follow what `make up` prints
	@tail -n 100 -F "$(DATA)/up.log"

db-shell: .venv/ready ## psql on the embedded database of `make up`
	@$(BIN)/python scripts/db_shell.py "$(DATA)"

clean:           ## Remove caches and built files
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .cache
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

clean-all:       ## Also remove the virtual environment and the data of `make up`, unless that runs
	@"$(PYTHON)" scripts/unused.py "$(DATA)"
	@$(MAKE) --no-print-directory clean
	rm -rf .venv "$(DATA)" bench/results

.venv/ready: requirements-embedded.lock pyproject.toml
	@scripts/venv.sh "$(PYTHON)" requirements-embedded.lock
	@touch $@

.venv/dev: requirements-dev.lock pyproject.toml
	@scripts/venv.sh "$(PYTHON)" requirements-dev.lock
	@touch $@ .venv/ready
