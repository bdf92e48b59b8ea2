# Portable make (GNU and BSD).  `make` alone prints the lines below that begin with two hashes.
PYTHON = python3
VENV = .venv
BIN = $(VENV)/bin
CASES = tests/conformance/cases
PYTEST_ARGS =
BENCH_ARGS =

DEPLOYED = cbsd_monit _modules _states _engines _runners _resources
ROOT = /usr/local/etc/salt/states

# What salt-lint cannot read: a reactor in Python, and the benchmark's copy of others' habits.
NOT_SALT = ! -path cbsd_monit/reactor/notify.sls ! -path 'tests/bench/idiomatic/*'
YAML = {extends: default, rules: {line-length: {max: 100}, document-start: disable, \
  comments-indentation: disable, comments: {min-spaces-from-content: 1}}}

.PHONY: help setup demo test lint bench conformance install clean

help:
	@sed -n 's/^## //p' Makefile

$(VENV)/.ready: requirements/test.lock tests/setup.sh
	sh tests/setup.sh $(PYTHON) $(VENV)

setup: $(VENV)/.ready
	@sh tests/setup.sh --packages

## make demo                        from pillar to a healed jail, simulated; writes build/demo.json
demo: setup
	@$(BIN)/python tests/demo.py

## make test                        lint and all tests
## make test PYTEST_ARGS=tests/unit these only; any arguments of pytest
## CBSD_MONIT_POINTS=all make test  also the kill points that leave nothing new, and full sizes
test: lint
	@$(BIN)/python tests/run.py $(PYTEST_ARGS)

## make lint                        ruff, salt-lint, yamllint
lint: setup
	@$(BIN)/python -m ruff check . && $(BIN)/python -m ruff format --check .
	@find cbsd_monit tests -name '*.sls' $(NOT_SALT) -exec $(BIN)/salt-lint {} +
	@$(BIN)/yamllint --strict -d "$(YAML)" cbsd_monit/defaults.yaml FORMULA pillar.example

## make bench                       what it costs, in half an hour; writes build/bench.json and .svg
## make bench BENCH_ARGS=storm      this part only; --record adds a row to docs/benchmarks.md
bench: setup
	@sh tests/setup.sh --packages strace
	@$(BIN)/python tests/bench/run.py $(BENCH_ARGS)

## make conformance CASES=DIR       replays recordings of real CBSD against the simulator
conformance: setup
	@$(BIN)/python tests/conformance/run.py $(CASES)

## make install ROOT=/srv/salt      copies what Salt needs, and nothing else, to a file root
install:
	mkdir -p "$(ROOT)"
	for d in $(DEPLOYED); do (cd $$d && find . -type f ! -name '*.pyc') | \
	  while read -r f; do mkdir -p "$(ROOT)/$$d/$${f%/*}" && cp "$$d/$$f" "$(ROOT)/$$d/$$f"; done; done

## make clean                       removes the virtualenv and all that these wrote
clean:
	-$(BIN)/python tests/demo.py --remove
	rm -rf $(VENV) build .demo .pytest_cache
