# Everything a checkout needs. `make demo` and `make test` set up by themselves: GNU make, Python 3.11 or newer and its venv module
# are all that must be there. Nothing is downloaded but by pip; options for pip go in its own variables (PIP_INDEX_URL, PIP_EXTRA_INDEX_URL).

PYTHON ?= python3
VENV ?= .venv
RUN ?= .run
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
PYTEST := $(BIN)/python -m pytest
SOURCES := pyproject.toml sdk/python/pyproject.toml constraints.txt

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup setup-dev demo run test check format bench bench-gpu bench-peers nightly proto clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*##/\1 -/p' Makefile

setup: $(VENV)/.installed  ## make .venv and install kerneld into it

setup-dev: $(VENV)/.installed-dev  ## the same, with what tests and checks need

demo: setup  ## tell the story of the README on the shipped model
	$(BIN)/python -P examples/demo.py

run: setup  ## start a daemon that stays; state and socket in .run
	@mkdir -p -m 700 $(RUN)
	@echo "In another terminal: export KERNELD_SOCKET=$(abspath $(RUN))/kerneld.sock; $(BIN)/kernelctl model load examples/demo_model --name demo"
	$(BIN)/kerneld serve --state $(RUN)/state --socket $(RUN)/kerneld.sock --model-root examples

test: setup-dev  ## run all tests
	$(PYTEST) tests

check: setup-dev  ## format, lint, types, house rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(PYTEST) tests/test_house.py

format: setup-dev  ## put the sources into the one format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup-dev  ## answer every question in bench/, as tables and JSON
	set -e; for question in engine batch_invariant split sampling attention start limits verbs rpc cli plan_cost scheduler_cost books oversubscription swap prefix weights streaming fragmentation adapters token_gap fairness simulation perplexity; do $(BIN)/python -m bench.$$question --json bench/results/$$question.json; done
	$(BIN)/python -m bench.report bench/results

bench-gpu: setup-dev  ## what one NVIDIA device does with our kernels, in less than twenty minutes
	$(BIN)/python -m bench.gpu --json bench/results/gpu.json
	$(BIN)/python -m bench.report bench/results

bench-peers: setup-dev  ## the speed of generation beside OpenVINO, vLLM, llama.cpp and transformers; installs them into .peers
	$(BIN)/python -m bench.peers.install
	$(BIN)/python -m bench.inference --json bench/results/inference.json
	$(BIN)/python -m bench.report bench/results

nightly: setup-dev  ## all tests, with many more random examples
	$(PYTEST) tests --hypothesis-profile=nightly

proto: setup-dev  ## generate the message classes from proto/
	$(BIN)/python -P -m grpc_tools.protoc -I kerneld_client/pb=proto --python_out=sdk/python --pyi_out=sdk/python \
	    --grpc_python_out=sdk/python proto/syscalls.proto

clean:  ## remove what the other targets made
	rm -rf $(VENV) $(RUN) .demo build dist .peers .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage *.egg-info sdk/python/*.egg-info sdk/python/build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps stand for an environment that holds what the named files ask for.
$(VENV)/.installed: $(VENV)/.created $(SOURCES)
	@echo "Installing into $(VENV); torch is large, so the first time takes a minute or more."
	$(PIP) --editable sdk/python --editable '.[daemon]'
	touch $@

$(VENV)/.installed-dev: $(VENV)/.created $(SOURCES)
	$(PIP) --editable sdk/python --editable '.[daemon,dev]'
	touch $(VENV)/.installed $@

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "kerneld needs Python 3.11 or newer; '$(PYTHON)' is not. Name another one: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	    { echo "Python's venv module is missing. On Debian and Ubuntu: sudo apt install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	touch $@
