# `make help` lists the targets. Each does its own set-up in .venv; nothing else on the machine is touched.

PYTHON ?= python3
BIN := .venv/bin
OLDEST := .venv/oldest/bin
DOC ?=
JOBS ?= auto
SECONDS ?= 60
BENCH ?=
FUZZ := journal_file entry post value blob toml url name schema reply

.PHONY: help setup demo test test-long test-oldest fuzz check format bench lock clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' Makefile

setup: .venv/dev.stamp ## everything for working on Perdure, into .venv

demo: .venv/run.stamp ## review a paper with a crew that is killed twice; DOC=your.md for another text
	@$(BIN)/perdure demo $(if $(DOC),--doc "$(DOC)")

test: .venv/dev.stamp ## the tests (under 8 minutes on 2 cores)
	@$(BIN)/python -m compileall -q src tests # they start hundreds of processes
	$(BIN)/python -m pytest -q -n $(JOBS)

test-long: .venv/dev.stamp .venv/faults.stamp ## whole matrices of what `make test` samples (tens of minutes)
	$(BIN)/python -m pytest -q -n $(JOBS) -m long

test-oldest: .venv/oldest.stamp ## unit and conformance tests with the oldest packages that pyproject.toml allows
	$(OLDEST)/python -m pytest -q -n $(JOBS) tests/unit tests/conformance

fuzz: .venv/fuzz.stamp ## everything that reads bytes, SECONDS=60 each, with atheris
	@for target in $(FUZZ); do echo "== $$target"; $(BIN)/python tests/fuzz/fuzz.py $$target -max_total_time=$(SECONDS) \
		-timeout=5 -rss_limit_mb=2000 -max_len=4096 -verbosity=0 || exit 1; done

check: .venv/dev.stamp ## lint, formatting, types, layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: .venv/dev.stamp ## put imports and layout in order
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: .venv/dev.stamp .venv/peers.stamp ## speed against the raw device and peers, into bench/RESULTS.md; BENCH="--only W1"
	@$(BIN)/python -m compileall -q src bench
	$(BIN)/python -m bench $(BENCH)

lock: ## renew requirements/*.txt from pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(call compile,run) pyproject.toml --group build
	$(call compile,dev) pyproject.toml --all-extras --group build --group dev
	$(call compile,peers) --group pyproject.toml:peers

define compile
$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-header --no-annotate --no-emit-index-url \
	--no-emit-find-links --upgrade --python-version 3.11 -o requirements/$(1).txt
endef

clean: ## remove what the targets made, but no runs
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis dist

# The demo needs the library and its few dependencies only; the rest of the tools come with `setup`.
.venv/run.stamp: requirements/run.txt pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "Setting up .venv ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/run.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

# What makes system calls fail: strace, as it is here or as Debian has it, or a shim of ours if there is a C compiler.
.venv/faults.stamp: tests/crash/get_strace.py .venv/dev.stamp
	@$(BIN)/python tests/crash/get_strace.py
	@touch $@

.venv/dev.stamp: requirements/dev.txt .venv/run.stamp
	@echo "Installing the tools for tests and checks ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	@touch $@

# What Perdure is measured with, in an environment of its own: neither can import the other.
.venv/peers.stamp: requirements/peers.txt .venv/dev.stamp
	@echo "Setting up .venv/peers ..."
	@test -x .venv/peers/bin/python || $(PYTHON) -m venv .venv/peers
	@.venv/peers/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/peers.txt
	@touch $@

# An environment of its own; the oldest there are of what is needed directly, with the tools for tests as they are now.
.venv/oldest.stamp: pyproject.toml .venv/dev.stamp
	@echo "Setting up .venv/oldest ..."
	@test -x $(OLDEST)/python || $(PYTHON) -m venv .venv/oldest
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@$(BIN)/uv pip compile --quiet --all-extras --resolution lowest-direct --no-header --no-annotate --no-emit-index-url \
		--no-emit-find-links --python $(OLDEST)/python -o .venv/oldest/versions.txt pyproject.toml
	@$(BIN)/uv pip install --quiet --python $(OLDEST)/python -c .venv/oldest/versions.txt -e '.[postgres,redis,encryption]' \
		--group dev
	@touch $@

# Not in the lock: it is there for few platforms, and only this target needs it.
.venv/fuzz.stamp: .venv/dev.stamp
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check atheris
	@touch $@
