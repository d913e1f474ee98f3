# Everything here is safe to run again. `make help` says what there is.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup demo test unit wire hostile fleet-test lockout lifecycle guide molecule faults bench bench-long lint format clean distclean

BIN := .venv/bin
# More arguments: make test ARGS='-k replay -x'
ARGS ?=
# How long each of the three fuzzers runs: make fuzz SECONDS=3600
SECONDS ?= 300
PYTEST := $(BIN)/python -m pytest
# Three processes, also on two cores, for much of what the tests do is wait. The fleets' begin,
# as they take longest.
SHARED := -n 3 --no-loadscope-reorder
# Real packets, namespaces and hosts need root. tools/as-root asks for it when it is missing.
ROOT := tools/as-root

# What make hostile runs.
HOSTILE := tests/hostile tests/fuzz tests/property \
  $(addprefix tests/wire/test_,hostile.py silence.py meaning.py endings.py look.py nat.py scan.py flood.py interfaces.py agent.py link.py) \
  $(addprefix tests/unit/test_,openpgp.py picture.py message.py wire.py bpf.py sentry.py)

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
	$(ROOT) $(PYTEST) $(SHARED) $(ARGS)

unit: ## the tests that need no root
	@tools/setup client lint
	$(PYTEST) -m 'not wire and not fleet' $(ARGS)

wire: ## the tests in network namespaces
	@tools/setup client test
	$(ROOT) $(PYTEST) -m wire $(ARGS)

hostile: ## all that strangers, card holders and lying hosts may send: docs/hostile.md
	@tools/setup client test
	$(ROOT) $(PYTEST) $(HOSTILE) $(ARGS)

.PHONY: firewall
firewall: ## leases and the guard, every test on every firewall backend
	@tools/setup client test
	$(ROOT) env FIREWALLS='nftables iptables-nft iptables-legacy' $(PYTEST) tests/wire/test_firewall.py $(ARGS)

.PHONY: fuzz
fuzz: ## fuzz sentry, warden and what GnuPG says, SECONDS each (300); finds are left in .fuzz/
	@tools/setup client test
	$(BIN)/python tests/fuzz/campaign.py $(SECONDS)

.PHONY: kernel
kernel: ## links that this machine's kernel may lack (VLAN, GRE, PPP), and its clock set, under User-mode Linux
	@tools/setup client test kernel
	PYTEST_ADDOPTS=--color=no $(ROOT) env FIREWALLS=iptables-legacy tools/other-kernel $(BIN)/python -m pytest -p no:cacheprovider tests/wire/test_interfaces.py tests/wire/test_faults.py::test_the_host_s_clock_is_set $(ARGS)

fleet-test: ## the tests on the three hosts
	@tools/setup client test fleet
	$(ROOT) $(PYTEST) -m fleet $(ARGS)

lockout: ## sabotage on a guarded host: whatever breaks, its ssh must answer again
	@tools/setup client test fleet
	$(ROOT) $(PYTEST) tests/fleet/test_lockout.py $(ARGS)

lifecycle: ## hosts change their keys; a deployment is killed at every task (90 minutes)
	@tools/setup client test fleet
	$(ROOT) $(PYTEST) tests/fleet/lifecycle.py $(ARGS)

guide: ## docs/fleet.md, command by command, on three fresh hosts
	@tools/setup client test fleet
	$(ROOT) $(PYTEST) tests/fleet/guide.py $(ARGS)

molecule: ## the role's scenarios on three fresh hosts each (one: ARGS='-s trixie')
	@tools/setup client fleet
	$(ROOT) molecule test $(or $(ARGS),--all)

faults: ## kill -9 at every step, full disk, broken gpg, jumping clocks, on every firewall backend
	@tools/setup client test
	$(ROOT) env TARIQ_FAULTS=all FIREWALLS='nftables iptables-nft iptables-legacy' $(PYTEST) tests/wire/test_faults.py $(ARGS)

bench: ## floods, beside fwknopd where it is installed, and what a knock costs, in short
	@tools/setup client test
	$(ROOT) $(BIN)/python bench/flood.py --short $(ARGS)
	$(ROOT) $(BIN)/python bench/speed.py --short

bench-long: ## the same at three rates with 20 knocks each, and two hundred hosts
	@tools/setup client test
	$(ROOT) $(BIN)/python bench/flood.py $(ARGS)
	$(ROOT) $(BIN)/python bench/speed.py --hosts 200

lint: ## ruff, mypy, ansible-lint, yamllint
	@tools/setup lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy tools/wheelhouse.py tools/role_readme.py
	$(BIN)/mypy --explicit-package-bases plugins
	$(BIN)/python tools/role_readme.py --check
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/yamllint .
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/ansible-lint --offline -q

format: ## put the Python code into ruff's format
	@tools/setup lint
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

clean: ## take fleets down, remove what tests and checkers left
	@for d in .fleet/*/; do [ ! -d "$$d" ] || FLEET_NAME=$$(basename "$$d") tools/fleet down; done
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .ansible .wheelhouse .fuzz dist build
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

distclean: clean ## clean, and remove the hosts' image and .venv
	@if command -v podman docker >/dev/null; then tools/fleet down --image; fi
	rm -rf .venv
