#!/usr/bin/env python3
"""
All tests, as pytest runs side by side: most of the functional ones wait for real daemons, as many as there are cores.

With arguments it is one pytest run with them: `make test PYTEST_ARGS='-k wake tests/unit'`.
"""

import concurrent.futures
import os
import pathlib
import subprocess
import sys
import tempfile
import threading
import time

REPO = pathlib.Path(__file__).resolve().parents[1]
FUNCTIONAL = "tests/functional/test_{}.py".format
REST = ["tests"]  # what no other run names
# The longest first, and beside those that compute one that waits.
RUNS = [
    ["tests/integration/test_events.py"],
    [FUNCTIONAL("kills")],
    [FUNCTIONAL("timeline"), FUNCTIONAL("storm")],
    [FUNCTIONAL("lifecycle")],
    [FUNCTIONAL("publish_faults")],
    [FUNCTIONAL("loop")],
    [FUNCTIONAL("sls")],
    REST,
    [FUNCTIONAL("scale")],
    ["tests/unit"],
    ["tests/conformance"],
    ["tests/integration/test_bus.py"],
]


def main():
    pytest = [sys.executable, "-m", "pytest"]
    if sys.argv[1:]:
        return subprocess.call([*pytest, *sys.argv[1:]], cwd=REPO)
    named = [f"--ignore={path}" for run in RUNS if run != REST for path in run]
    runs = [run + named if run == REST else run for run in RUNS]
    began, turn, left = time.monotonic(), threading.Lock(), [run[0] for run in runs]

    def one(number, run, folder):
        # A folder of its own for each: pytest removes the older ones of its common one.
        argv = [*pytest, *run, "-q", f"--basetemp={folder}/{number}", "-p", "no:cacheprovider"]
        done = subprocess.run(
            argv, cwd=REPO, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
        )
        with turn:
            left.remove(run[0])
            text = done.stdout.decode("utf-8", "replace")
            said = text if done.returncode else text.strip().splitlines()[-1] + "\n"
            sys.stdout.write(
                f"==> {run[0]}: {said}{time.monotonic() - began:.0f} s, still to come: {' '.join(left)}\n"
            )
            sys.stdout.flush()
        return done.returncode

    with tempfile.TemporaryDirectory() as folder:
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            jobs = [pool.submit(one, number, run, folder) for number, run in enumerate(runs)]
            codes = [job.result() for job in jobs]
    print(f"all tests: {time.monotonic() - began:.0f} s")
    return max(codes)


if __name__ == "__main__":
    sys.exit(main())
