# Everything here is safe to run again. `make help` says what there is.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup demo test unit wire fleet-test molecule lint format clean distclean

BIN := .venv/bin
# More arguments: make test ARGS='-k replay -x'
ARGS ?=
PYTEST := $(BIN)/python -m pytest
# Real packets, namespaces and hosts need root. tools/as-root asks for it when it is missing.
ROOT := tools/as-root

help: ## show this
	@printf 'make TARGET\n\n'
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 14

setup: ## install what is missing: system packages, .venv
	@tools/setup

demo: ## three hosts, deploy, knock, watch the door open and close (KEEP=1 leaves the fleet)
	@tools/setup client fleet
	@KEEP='$(KEEP)' tools/demo

test: ## every test (root: real packets and real hosts)
	@tools/setup client test fleet
	$(ROOT) $(PYTEST) $(ARGS)

unit: ## the tests that need no root
	@tools/setup client lint
	$(PYTEST) -m 'not wire and not fleet' $(ARGS)

wire: ## the tests in network namespaces
	@tools/setup client test
	$(ROOT) $(PYTEST) -m wire $(ARGS)

fleet-test: ## the tests on the three hosts
	@tools/setup client test fleet
	$(ROOT) $(PYTEST) -m fleet $(ARGS)

molecule: ## the role on three fresh hosts: converge, idempotence, verify
	@tools/setup client fleet
	$(ROOT) molecule test $(ARGS)

lint: ## ruff, mypy, ansible-lint, yamllint
	@tools/setup lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy tools/wheelhouse.py tools/role_readme.py
	$(BIN)/python tools/role_readme.py --check
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/yamllint .
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/ansible-lint --offline -q

format: ## put the Python code into ruff's format
	@tools/setup lint
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

clean: ## take fleets down, remove what tests and checkers left
	@for d in .fleet/*/; do [ ! -d "$$d" ] || FLEET_NAME=$$(basename "$$d") tools/fleet down; done
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .ansible .wheelhouse dist build
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

distclean: clean ## clean, and remove the hosts' image and .venv
	@if command -v podman docker >/dev/null; then tools/fleet down --image; fi
	rm -rf .venv
