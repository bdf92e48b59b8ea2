#!/usr/bin/env python3
"""
All tests, as pytest runs side by side: most of the functional ones wait for real daemons.

With arguments it is one pytest run with them: `make test PYTEST_ARGS='-k wake tests/unit'`.
"""

import os
import pathlib
import subprocess
import sys
import tempfile
import threading
import time

REPO = pathlib.Path(__file__).resolve().parents[1]
FUNCTIONAL = "tests/functional/test_{}.py".format
# The share of a core that a run keeps busy, and what it runs. The longest first; what is not named is one run of its own.
RUNS = [
    (0.6, ["tests/integration/test_events.py"]),
    (0.6, [FUNCTIONAL("kills")]),
    (0.6, [FUNCTIONAL("timeline"), FUNCTIONAL("storm")]),
    (0.8, [FUNCTIONAL("loop")]),
    (0.8, [FUNCTIONAL("lifecycle")]),
    (1.0, [FUNCTIONAL("sls")]),
    (1.0, [FUNCTIONAL("publish_faults")]),
    (1.0, [FUNCTIONAL("scale")]),
    (1.0, ["tests/unit"]),
    (1.0, ["tests/conformance"]),
    (0.8, ["tests/integration/test_bus.py"]),
]


class Runs:
    """Pytest runs side by side, as many as the cores bear."""

    def __init__(self, folder):
        self.folder, self.began = folder, time.monotonic()
        rest = ["tests", *(f"--ignore={path}" for _, run in RUNS for path in run)]
        self.waiting = [*RUNS, (1.0, rest)]
        self.busy, self.running, self.codes = 0.0, [], []
        self.changed = threading.Condition()

    def all(self):
        """Run them; the worst of their exit codes."""
        with self.changed:
            while self.waiting or self.running:
                free = (os.cpu_count() or 1) - self.busy
                fits = next((run for run in self.waiting if not self.running or run[0] <= free + 0.01), None)
                if fits is None:
                    self.changed.wait()
                    continue
                self.waiting.remove(fits)
                self.running.append(fits)
                self.busy += fits[0]
                threading.Thread(target=self.one, args=(fits,)).start()
        print(f"all tests: {time.monotonic() - self.began:.0f} s")
        return max(self.codes)

    def one(self, run):
        """Run one."""
        _, words = run
        code, text = 1, "it could not be run\n"
        try:
            # A folder of its own for each: pytest removes the older ones of its common one.
            folder = tempfile.mkdtemp(dir=self.folder)
            argv = [sys.executable, "-m", "pytest", *words, "-q", f"--basetemp={folder}/run", "-p", "no:cacheprovider"]
            done = subprocess.run(argv, cwd=REPO, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
            code, text = abs(done.returncode), done.stdout.decode("utf-8", "replace")
        finally:
            self.ended(run, code, text)

    def ended(self, run, code, text):
        """Make room for others, and tell what it said: all of it when it failed."""
        share, words = run
        with self.changed:
            self.running.remove(run)
            self.busy -= share
            self.codes.append(code)
            left = " ".join(others[0] for _, others in [*self.running, *self.waiting])
            said = text if code else text.strip().splitlines()[-1] + "\n"
            sys.stdout.write(f"==> {words[0]}: {said}{time.monotonic() - self.began:.0f} s, still to come: {left}\n")
            sys.stdout.flush()
            self.changed.notify()


def main():
    if sys.argv[1:]:
        return subprocess.call([sys.executable, "-m", "pytest", *sys.argv[1:]], cwd=REPO)
    with tempfile.TemporaryDirectory() as folder:
        return Runs(folder).all()


if __name__ == "__main__":
    sys.exit(main())
