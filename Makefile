# Portable make (GNU and BSD).  `make demo` and `make test` set up what they need by themselves.
PYTHON = python3
VENV = .venv
BIN = $(VENV)/bin
CASES = tests/conformance/cases
PYTEST_ARGS =
BENCH_ARGS =

DEPLOYED = cbsd_monit _modules _states _engines _runners _resources
ROOT = /usr/local/etc/salt/states

.PHONY: all setup demo test bench conformance install lint clean

all: test

$(VENV)/.ready: requirements/test.lock tests/setup.sh
	sh tests/setup.sh $(PYTHON) $(VENV)

setup: $(VENV)/.ready
	@sh tests/setup.sh --packages

# The main job on a simulated CBSD node under .demo/: pillar to healed jail; writes build/demo.json.
demo: setup
	@$(BIN)/python tests/demo.py

test: setup
	@$(BIN)/python tests/run.py $(PYTEST_ARGS)

# Measures all of it beside what one would otherwise use: build/bench.json and .svg (about half an hour).  BENCH_ARGS='heal storm'
# does these parts only, BENCH_ARGS=--record also adds a row to docs/benchmarks.md.
bench: setup
	@sh tests/setup.sh --packages strace
	@$(BIN)/python tests/bench/run.py $(BENCH_ARGS)

# Replays recordings of real CBSD against the simulator: make conformance [CASES=DIR]
conformance: setup
	@$(BIN)/python tests/conformance/run.py $(CASES)

# Copies what Salt needs, and nothing else, to a file root: make install [ROOT=/srv/salt]
install:
	mkdir -p "$(ROOT)"
	for d in $(DEPLOYED); do (cd $$d && find . -type f ! -name '*.pyc') | \
	  while read -r f; do mkdir -p "$(ROOT)/$$d/$${f%/*}" && cp "$$d/$$f" "$(ROOT)/$$d/$$f"; done; done

lint: setup
	@$(BIN)/python -m ruff check . && $(BIN)/python -m ruff format --check .

clean:
	-$(BIN)/python tests/demo.py --remove
	rm -rf $(VENV) build .demo .pytest_cache
