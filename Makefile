# Everything runs in .venv, which `make venv` makes; `make demo` and `make test` do all of their own set-up.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
FASHION_DIR := /usr/share/datasets/fashion-mnist
# Folders without Python files are left out: the tools below take an empty argument for a mistake.
CHECKED := $(foreach dir,code_ray search deployments examples benchmarks tests,$(if $(wildcard $(dir)/*.py),$(dir)))

# $(call apt-install,PACKAGE): where this is Debian and we are root. Package lists are fetched only if they are missing or old.
apt-install = command -v apt-get > /dev/null && [ "$$(id -u)" = 0 ] && \
	{ apt-get install -y -qq $(1) > /dev/null 2>&1 || { apt-get update -qq && apt-get install -y -qq $(1) > /dev/null; }; }

.PHONY: help venv data demo test test-cluster check bench experiments soak zoo clean
.DEFAULT_GOAL := help

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s  %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

venv: $(INSTALLED) ## .venv with the package and all it needs

$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is older than Python 3.11; run 'make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)'"; exit 1; }
	@# Debian keeps what venv needs in a package of its own.
	$(PYTHON) -m venv .venv || { $(call apt-install,python3-venv) && $(PYTHON) -m venv .venv; }
	$(BIN)/pip install --disable-pip-version-check --progress-bar off --quiet -e '.[dev,demo]'
	@touch $@

data: venv ## Fashion-MNIST from Debian, where that can be had, and rated sentences from PyPI
	@test -d $(FASHION_DIR) || { $(call apt-install,dataset-fashion-mnist); } || \
		echo "dataset-fashion-mnist was not installed (that takes Debian and root): it will be downloaded when it is needed"
	@$(BIN)/python -c 'from code_ray.data import load_data; load_data("vader-sentences")' || echo "the rated sentences were not downloaded"

demo: venv data ## search, deploy and measure a pair of services: runs/demo/
	$(BIN)/python -m examples.demo --out runs/demo

check: venv ## lint, types, layers, file sizes
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy $(CHECKED)
	$(BIN)/lint-imports
	@find $(CHECKED) -name '*.py' -exec awk 'FNR == 301 { print FILENAME ": more than 300 lines; split it by idea"; bad = 1 } END { exit bad }' {} +

test: venv data check ## check, then every test
	PYTHONFAULTHANDLER=1 $(BIN)/pytest

# Debian starts an sshd that it installs, now and after every boot, unless it is told not to; the test starts its own.
test-cluster: venv ## three hosts made of namespaces: ray up, serving, a search, a host lost, ray down (root; skipped without)
	@if [ "$$(id -u)" = 0 ] && ! { command -v sshd && command -v ip && command -v rsync; } > /dev/null; then \
		policy=/usr/sbin/policy-rc.d; \
		test -e $$policy || { trap "rm -f $$policy" EXIT; printf '#!/bin/sh\nexit 101\n' > $$policy; chmod +x $$policy; }; \
		$(call apt-install,openssh-server openssh-client iproute2 rsync) || true; \
		systemctl --quiet disable ssh.service ssh.socket 2> /dev/null || true; \
	fi
	$(BIN)/pytest -x -s tests/cluster/three_hosts.py

bench: venv data ## every benchmark
	@set -e; for file in $(filter-out %/__init__.py %/jobs.py,$(wildcard benchmarks/*.py)); do \
		name=$$(basename $$file .py); echo "== $$name"; $(BIN)/python -m benchmarks.$$name --out runs/bench; done

experiments: venv data ## the paper's four experiments with their controls, and docs/experiments.md; again, it goes on
	$(BIN)/python -m benchmarks.experiments

soak: venv data ## half an hour of faults, malformed requests and mixed load: nothing is lost, nothing grows
	$(BIN)/python -m benchmarks.serving.malformed
	$(BIN)/python -m benchmarks.serving.kills --out runs/bench
	$(BIN)/python -m benchmarks.serving.memory --out runs/bench

zoo: venv data ## train the services that ship with the package again
	$(BIN)/python -m code_ray.zoo_training

clean: ## remove what make made, except runs/
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find $(CHECKED) -name __pycache__ -type d -prune -exec rm -rf {} +
