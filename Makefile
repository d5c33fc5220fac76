# Two commands, each with all of its own set-up: `make demo` and `make test`.

.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: help demo test bench fuzz soak check fmt pins clean packages clients

PIP = .venv/bin/python -m pip -qq --disable-pip-version-check --no-input
INSTALL = $(PIP) install --constraint constraints.txt --build-constraint constraints.txt
PINS = build/pins
CLIENTS = tests/clients

# $(call step,COMMAND): names the command, runs it from .venv, names it again if it fails.
step = @echo '- $(1)'; .venv/bin/$(1) || { echo 'This step failed: $(1)' >&2; exit 1; }

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' Makefile

demo: .venv/.demo ## broker, sandbox Coze and page on this machine; ARGS=--check uploads by each route and exits
	@.venv/bin/broker demo $(ARGS)

# Most tests wait for a process of theirs, so three at a time are done sooner also on two cores.
test: check packages clients ## everything: check, then pytest $(ARGS)
	@echo '- pytest $(ARGS)'
	@.venv/bin/pytest --numprocesses 3 --dist loadfile $(ARGS)

bench: .venv/.test packages ## the broker beside nginx and a naive relay; ARGS=--quick takes under a minute
	@.venv/bin/python -m tests.bench $(ARGS)

fuzz: .venv/.test ## strange bytes for what reads them, a minute each; ARGS='--seconds 600 --target forms'
	@.venv/bin/python -m tests.fuzz $(ARGS)

soak: .venv/.test ## ten minutes of uploads and faults, and an account at the end; ARGS=--quick takes one minute
	@.venv/bin/python -m tests.soak $(ARGS)

check: .venv/.test ## ruff, mypy and the import contracts
	$(call step,ruff check)
	$(call step,ruff format --check)
	$(call step,mypy)
	$(call step,lint-imports --no-logo)

fmt: .venv/.test ## format, and mend what ruff can mend
	$(call step,ruff format)
	$(call step,ruff check --fix)

# redis asks for async-timeout below Python 3.11.3 only, and Debian 12 has 3.11.2.
pins: ## renew constraints.txt: the newest version of everything that runs on Python 3.11, the oldest supported
	@echo '- resolving the newest versions with Python 3.11'
	@python=$$(PYTHON=python3.11 .ci/provide python) && "$$python" -m venv --clear $(PINS)
	@$(PINS)/bin/python -m pip -qq install --upgrade pip
	@$(PINS)/bin/python -m pip -qq install --editable '.[postgresql,redis]' --group dev async-timeout hatchling editables
	@$(PINS)/bin/python -m pip freeze --all --exclude-editable --exclude setuptools > $(PINS)/frozen
	@sed -n '/^#/!q;p' constraints.txt > $(PINS)/header
	@{ cat $(PINS)/header; LC_ALL=C sort -f $(PINS)/frozen; } > constraints.txt
	@rm -rf $(PINS)

clean: ## remove what these commands made, but no data
	@rm -rf .venv $(CLIENTS)/node_modules build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	@find broker tests -name __pycache__ -type d -prune -exec rm -rf {} +

# Set-up. The stamps live inside .venv and go with it.

# A .venv whose Python is gone, or that was made in another folder, is made anew.
ifneq ($(shell .venv/bin/python -c 'print(open(".venv/.made").read().strip())' 2>/dev/null),$(CURDIR))
.PHONY: .venv/.made
endif

.venv/.made:
	@.ci/provide venv

.venv/.demo: .venv/.made pyproject.toml constraints.txt
	@echo '- installing the broker into .venv'
	@$(INSTALL) pip --editable .
	@touch $@

.venv/.test: .venv/.made pyproject.toml constraints.txt
	@echo '- installing the broker and its development tools into .venv'
	@$(INSTALL) pip --editable '.[postgresql,redis]' --group dev
	@touch .venv/.demo $@

packages:
	@.ci/provide packages

clients: $(CLIENTS)/node_modules/.package-lock.json

# Without npm, or without its registry, the tests of the JavaScript client are skipped and say so.
$(CLIENTS)/node_modules/.package-lock.json: $(CLIENTS)/package.json $(CLIENTS)/package-lock.json
	@if command -v npm >/dev/null; then \
	    echo '- installing the official JavaScript client into $(CLIENTS)'; \
	    (cd $(CLIENTS) && npm ci --silent && touch node_modules/.package-lock.json) \
	        || echo '  npm ci failed in $(CLIENTS): the tests of the JavaScript client cannot run'; \
	fi
