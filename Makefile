# One command each: `make demo` shows Weft, `make test` proves it. `make help` lists the rest.
# What is missing is installed first: Debian packages by apt (with sudo where you are not root), Python packages into
# .venv. Nothing else of the machine is touched, but by `make install`.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
.NOTPARALLEL:

# A user's PATH often lacks the folders where ip and nft are.
export PATH := $(PATH):/usr/sbin:/sbin

VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check
PREFIX ?= /opt/weft
BINDIR ?= /usr/local/bin
ETCDIR ?= /etc
SEEDS ?= 200
SEED ?= $(shell date +%s)
TESTS ?= tests
BENCH ?= all

SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
# Root must not leave its own caches in a user's checkout; the byte code it would write is there already.
AS_ROOT := $(if $(SUDO),$(SUDO) env PATH="$$PATH" PYTHONDONTWRITEBYTECODE=1)
COMPILE = $(PY) -m compileall -q gossip dataplane mesh bench labs tests
NO_CACHE := $(if $(SUDO),-p no:cacheprovider)

.PHONY: help demo test lint check bench bench-peers soak install uninstall clean

help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

demo: .tools-run $(VENV)/.ready-run ## three hosts on this machine, a daemon on each, containers that talk; leaves nothing behind
	@$(COMPILE) && $(AS_ROOT) $(PY) -m labs.demo

test: .tools-test $(VENV)/.ready-test ## all tests, those included that need root (TESTS=tests/gossip for some of them)
	@echo "== running all tests as root, in network namespaces of their own"
	@$(COMPILE) && $(AS_ROOT) $(PY) -m pytest $(NO_CACHE) $(TESTS)

lint: .tools-check $(VENV)/.ready-test ## lint and types
	@echo "== ruff" && $(PY) -m ruff check .
	@echo "== mypy" && $(PY) -m mypy

check: lint ## lint, types and the tests that need no root
	@echo "== tests without root" && $(PY) -m pytest -q -m "not root" $(TESTS)

bench: .tools-bench $(VENV)/.ready-run ## the figures, with progress; BENCH=sleeve for one, ROUNDS=9 SECONDS=3 for longer
	@$(COMPILE) && $(AS_ROOT) $(PY) -m bench $(BENCH) $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(SECONDS),--seconds $(SECONDS))

bench-peers: .tools-peers $(VENV)/.ready-run ## install what the bench compares with: tinc, fastd, openvpn; wireguard-go and nebula built by Go
	@$(PY) -m bench peers

soak: .tools-check $(VENV)/.ready-test ## simulated networks under a virtual clock, SEEDS=200 of them, from SEED=random
	@$(PY) -m gossip.sim --seed $(SEED) --seeds $(SEEDS)
	@$(PY) -m tests.dataplane.sleeve.soak --seed $(SEED) --seeds $(SEEDS)
	@$(PY) -m mesh.ipam.soak --seed $(SEED) --seeds $(SEEDS)
	@$(PY) -m mesh.ipam.soak --seed $(SEED) --seeds $(SEEDS) --apart

# The wheels are made as the user, whose pip configuration counts; root installs them without any network.
install: .tools-install $(PY) ## Weft for this machine: PREFIX=/opt/weft and the command /usr/local/bin/weft
	@if [ -e $(PREFIX) ] && [ ! -f $(PREFIX)/pyvenv.cfg ]; then \
	  echo "$(PREFIX) exists and is not a Python environment of ours: choose another PREFIX" >&2; exit 1; fi
	@echo "== building Weft and fetching what it needs"
	@rm -rf build && $(PIP) wheel --progress-bar off --wheel-dir build/wheels .
	@echo "== installing into $(PREFIX), command $(BINDIR)/weft"
	@$(SUDO) rm -rf $(PREFIX) && $(SUDO) $(PY) -m venv $(PREFIX)
	@$(SUDO) $(PREFIX)/bin/python -m pip --disable-pip-version-check install --quiet --no-index --find-links build/wheels weft
	@$(SUDO) mkdir -p $(BINDIR) && $(SUDO) ln -sfn $(PREFIX)/bin/weft $(BINDIR)/weft
	@$(MAKE) .leave-alone
	@$(BINDIR)/weft version && echo "installed. Next: $(strip $(SUDO) weft launch)"

uninstall: ## remove what `make install` made (a running daemon first: weft reset)
	@if [ ! -x $(PREFIX)/bin/weft ] || [ ! -f $(PREFIX)/pyvenv.cfg ]; then echo "there is no Weft in $(PREFIX)"; exit 1; fi
	@if $(SUDO) $(PREFIX)/bin/weft status >/dev/null 2>&1; then \
	  echo "a daemon is running: weft reset removes it and every trace of it first" >&2; exit 1; fi
	@$(SUDO) rm -rf $(PREFIX)
	@if [ "$$(readlink $(BINDIR)/weft)" = "$(PREFIX)/bin/weft" ]; then $(SUDO) rm -f $(BINDIR)/weft; fi
	@$(MAKE) .manage-again
	@echo "removed $(PREFIX) and $(BINDIR)/weft"

# Whoever else manages network devices on this machine is told to leave ours alone; who is not there is told nothing.
NM_CONF := $(ETCDIR)/NetworkManager
NETWORKD_CONF := $(ETCDIR)/systemd/network
RELOAD = $(if $(filter /etc,$(ETCDIR)),for tell in "nmcli general reload conf" "networkctl reload"; do \
  ! command -v $${tell%% *} >/dev/null || $(SUDO) $$tell >/dev/null 2>&1 || true; done,true)

.PHONY: .leave-alone .manage-again
.leave-alone:
	@if [ -d $(NM_CONF) ]; then echo "== telling NetworkManager to leave our devices alone"; \
	  $(SUDO) install -D -m 644 mesh/share/networkmanager/weft.conf $(NM_CONF)/conf.d/weft.conf; fi
	@if [ -d $(NETWORKD_CONF) ]; then echo "== telling systemd-networkd to leave our devices alone"; \
	  $(SUDO) install -m 644 mesh/share/systemd/05-weft.network mesh/share/systemd/05-weft.link $(NETWORKD_CONF); fi
	@$(RELOAD)
.manage-again:
	@$(SUDO) rm -f $(NM_CONF)/conf.d/weft.conf $(NETWORKD_CONF)/05-weft.network $(NETWORKD_CONF)/05-weft.link
	@$(RELOAD)

clean: ## remove .venv, builds and caches
	@rm -rf $(VENV) build bench/.peers *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# What has to be on the machine: commands, and the Debian packages that bring them.

TOOLS_CHECK := python3:python3
TOOLS_INSTALL := $(TOOLS_CHECK) ip:iproute2 nft:nftables
TOOLS_RUN := $(TOOLS_INSTALL) nsenter:util-linux ping:iputils-ping iperf3:iperf3
TOOLS_BENCH := $(TOOLS_RUN) ethtool:ethtool rsvg-convert:librsvg2-bin \
  /usr/lib/cni/host-local:containernetworking-plugins dnsperf:dnsperf dnsmasq:dnsmasq-base \
  dockerd:docker.io busybox:busybox-static iptables:iptables
# Go builds the newest of two; without it the distribution's own have to do.
TOOLS_PEERS := tincd:tinc fastd:fastd openvpn:openvpn \
  $(if $(shell command -v go),,wireguard-go:wireguard-go nebula:nebula)
TOOLS_TEST := $(TOOLS_RUN) tcpdump:tcpdump ethtool:ethtool iptables:iptables sysctl:procps \
  dockerd:docker.io busybox:busybox-static dig:bind9-dnsutils arping:iputils-arping \
  /usr/lib/cni/portmap:containernetworking-plugins ctr:containerd runc:runc podman:podman

.PHONY: .tools-check .tools-install .tools-run .tools-bench .tools-peers .tools-test
.tools-check: ; @$(call need,$(TOOLS_CHECK))
.tools-install: ; @$(call need,$(TOOLS_INSTALL))
.tools-run: ; @$(call need,$(TOOLS_RUN))
.tools-bench: ; @$(call need,$(TOOLS_BENCH))
.tools-peers: ; @$(call need,$(TOOLS_PEERS))
.tools-test: ; @$(call need,$(TOOLS_TEST))

define need
missing=""; \
for pair in $(1); do command -v "$${pair%%:*}" >/dev/null || missing="$$missing $${pair##*:}"; done; \
python3 -c 'import ensurepip, venv' 2>/dev/null || missing="$$missing python3-venv"; \
if [ -n "$$missing" ]; then \
  echo "== installing Debian packages:$$missing"; \
  if ! command -v apt-get >/dev/null; then \
    echo "missing:$$missing; there is no apt-get here, so please install them by hand" >&2; exit 1; fi; \
  if [ -n "$(SUDO)" ] && ! command -v sudo >/dev/null; then \
    echo "missing:$$missing; installing them needs root: run this as root, or install sudo" >&2; exit 1; fi; \
  apt="$(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=550 -q"; \
  $$apt update && $$apt install -y --no-install-recommends $$missing; \
fi
endef

# Python: the first of these that is new enough, an environment of our own, and stamps that say what is in it.

PYTHONS := python3 python3.13 python3.12 python3.11

$(PY):
	@for python in $(PYTHONS); do \
	  if $$python -c 'import sys, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    echo "== making $(VENV) with $$($$python --version)"; exec $$python -m venv $(VENV); fi; \
	done; \
	echo "Weft needs Python 3.11 or newer with its venv module; here is $$(python3 --version 2>&1 || true)" >&2; exit 1

$(VENV)/.ready-run: pyproject.toml | $(PY)
	@echo "== installing Python packages into $(VENV)"
	@$(PIP) install --progress-bar off -e .
	@touch $@

$(VENV)/.ready-test: pyproject.toml | $(PY)
	@echo "== installing Python packages into $(VENV)"
	@$(PIP) install --progress-bar off -e '.[test]'
	@touch $@ $(VENV)/.ready-run
