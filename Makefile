# Needs make (3.81 is enough) and python3 ≥ 3.11 with venv; everything else is installed into .venv/.
PYTHON ?= python3
BIN = .venv/bin
# Four processes: the tests mostly wait. A module stays in one process, so that its running system is shared.
PYTEST = $(BIN)/python -m pytest --numprocesses 4 --dist loadscope
FAST = tests/worker tests/api tests/shared tests/test_*.py tests/flows/test_ingest.py
.DEFAULT_GOAL := help
.PHONY: help up dev test test-all lint bench bench-search bench-stream faults eval docs clean

help:  ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

up: .venv/.installed  ## Set everything up and run it: the ask page, the folder's watcher, the dashboard
	@./askfolder up

dev: .venv/.installed-dev  ## Install the packages for the tests and the linters, run nothing

test: .venv/.installed-dev  ## Set everything up and run the fast tests: all modules, and one journey with real processes
	@$(PYTEST) $(FAST)

test-all: .venv/.installed-dev  ## Run all tests: also every journey and the short fault campaigns (make dev installs them)
	@$(PYTEST)

lint: .venv/.installed-dev  ## Lint, format and type checks
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

bench: .venv/.installed-dev  ## Measure small drops, and compare a folder with bare parsing and embedding: make bench DIR=folder
	@$(BIN)/python -m bench.drop
	@test -z "$(DIR)" || $(BIN)/python -m bench.ingest "$(DIR)"

bench-search: .venv/.installed-dev  ## Measure searching as an index grows: make bench-search [SIZES="10000 100000"] [DIR=folder] [ARGS="--write"]
	@$(BIN)/python -m bench.search $(SIZES) $(if $(DIR),--dir "$(DIR)") $(ARGS)
bench-stream: .venv/.installed-dev  ## Compare streamed answers with the bare SDK on the same stand-in: a hundred at once, and some that the client abandons
	@$(BIN)/python -m bench.stream

faults: .venv/.installed-dev  ## Break a running system on purpose, and count the damage: make faults [ONLY="kills redis"] [SIZE=0.1]
	@$(BIN)/python -m tests.faults $(ONLY) --size $(or $(SIZE),1) --report docs/reliability.md

eval: .venv/.installed  ## Measure retrieval: make eval [DIR=questions.jsonl or BEIR folder] [ARGS="--report report.html"]
	@./askfolder eval $(if $(DIR),"$(DIR)",eval/docs.jsonl --documents README.md --documents docs) $(ARGS)

docs: .venv/.installed-dev  ## Write the tables of settings and commands again
	@$(BIN)/python -m scripts.docs

clean:  ## Remove what was installed (.venv/); documents and indexes stay in .askfolder/
	@rm -rf .venv

.venv/.installed: requirements.lock scripts/install.sh
	@sh scripts/install.sh "$(PYTHON)" requirements.lock
	@touch $@

.venv/.installed-dev: requirements-dev.lock scripts/install.sh
	@sh scripts/install.sh "$(PYTHON)" requirements-dev.lock
	@touch .venv/.installed $@
