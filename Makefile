# `make quickstart` and `make test` need nothing but Python 3.11-3.13 and make.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null \
	&& echo $$p && break; done)
VENV := .venv
# Python compiles what it imports; pip would compile all that it installs, for more than a minute.
PIP := -m pip install --quiet --no-compile
RUN := runs/quickstart
# Tests often wait for child processes and disks, so that three workers keep two cores busy. A worker
# takes up to 3 GB.
WORKERS := $(shell awk '/MemTotal/ { print ($$2 > 12e6 ? 3 : 2) }' /proc/meminfo 2>/dev/null || echo 2)
PARALLEL := -n $(WORKERS) --dist loadfile
# Container images often set this variable. Then each process compiles TensorFlow and Keras anew, which
# takes 6 s of the 11 s until TensorFlow is loaded.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: quickstart test test-slow test-tpu-build test-launch lint golden workspace clean

quickstart: $(VENV)/.installed
	$(VENV)/bin/zoo train cnn_digits --workdir=$(RUN)

test: $(VENV)/.installed-test
	$(VENV)/bin/python -m pytest $(PARALLEL) -m "not slow and not alone"

test-slow: $(VENV)/.installed-test
	$(VENV)/bin/python -m pytest $(PARALLEL) -m "slow and not alone"
	$(VENV)/bin/python -m pytest -m alone $$(grep -rlF --include='*.py' mark.alone tests)

# The build of TensorFlow for TPUs runs on a CPU too: what the trainer does must be the same there.
test-tpu-build: .venv-tpu/.installed
	.venv-tpu/bin/python -m pytest $(PARALLEL) -m "not slow and not alone" \
	  tests/trainers/distributed/test_tpu.py tests/trainers/distributed/test_strategy.py \
	  tests/trainers/train/test_step.py tests/trainers/train/test_samples.py \
	  tests/trainers/run/test_checkpoint.py tests/trainers/run/test_saver.py \
	  tests/zoo/storage/test_remote.py tests/zoo/generation/test_translate.py \
	  tests/zoo/generation/test_generate.py tests/zoo/generation/test_beam_search.py \
	  tests/trainers/cli/test_cli_generate.py

# SkyPilot brings 59 packages, some of them older than TensorFlow's: an environment of its own.
test-launch: .venv-launch/.installed
	.venv-launch/bin/python launch/load.py

# Environments are kept between runs, where there are some.
.venv-tpu/.installed: launch/install_tpu.sh setup.cfg Makefile
	PYTHON=$(PYTHON) bash launch/install_tpu.sh .venv-tpu
	.venv-tpu/bin/python $(PIP) pytest pytest-xdist
	touch $@

.venv-launch/.installed:
	$(PYTHON) -m venv .venv-launch
	.venv-launch/bin/python $(PIP) 'skypilot>=0.14'
	touch $@

lint: $(VENV)/.installed-test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	PYTHONPATH=. $(VENV)/bin/lint-imports --no-logo

# Short runs of a commit and of this working tree must give the same weights and metrics.
golden: $(VENV)/.installed-test
	$(VENV)/bin/python -m tests.golden $(BASE)

# Writes the tables of WORKSPACE.md anew, from the catalog, the recipes, the results and the tree.
workspace: $(VENV)/.installed
	$(VENV)/bin/python -m benchmarks.workspace_table

$(VENV)/.installed: setup.cfg pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11, 3.12 or 3.13 is needed." >&2; exit 1; }
	@echo "Installing TensorFlow and what else is needed into $(VENV): some minutes, 3 GB."
	test -x $(VENV)/bin/pip || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python $(PIP) --upgrade pip
	$(VENV)/bin/python $(PIP) --editable .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(VENV)/bin/python $(PIP) --editable '.[test]'
	touch $@

clean:
	rm -rf $(VENV) .venv-tpu .venv-launch runs build *.egg-info
