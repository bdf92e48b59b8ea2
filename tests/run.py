#!/usr/bin/env python3
"""
All tests, as pytest runs side by side: those that mostly wait for real daemons in groups of their own, and all others.

With arguments it is one pytest run with them: `make test PYTEST_ARGS='-k wake tests/unit'`.
"""

import os
import pathlib
import subprocess
import sys
import tempfile
import time

REPO = pathlib.Path(__file__).resolve().parents[1]
FUNCTIONAL = "tests/functional/test_{}.py".format
WAITING = [
    ["tests/integration"],
    [FUNCTIONAL(name) for name in ("loop", "storm", "kills", "timeline", "lifecycle")],
]


def main():
    pytest = [sys.executable, "-m", "pytest"]
    if sys.argv[1:]:
        return subprocess.call([*pytest, *sys.argv[1:]], cwd=REPO)
    groups = [*WAITING, ["tests", *(f"--ignore={path}" for group in WAITING for path in group)]]
    began, runs = time.time(), []
    with tempfile.TemporaryDirectory() as folder:
        for number, group in enumerate(groups):
            out = open(os.path.join(folder, str(number)), "w+b")
            # A folder of its own for each: pytest removes the older ones of its common one.
            options = [*group, f"--basetemp={folder}/tmp{number}", "-p", "no:cacheprovider"]
            runs.append((subprocess.Popen([*pytest, *options], cwd=REPO, stdout=out, stderr=subprocess.STDOUT), out))
        while any(run.poll() is None for run, _ in runs):
            time.sleep(1)
            if int(time.time() - began) % 30 == 0:
                done = ", ".join(f"{_share(out)}" for _, out in runs)
                print(f"{time.time() - began:4.0f} s: {done}", flush=True)
        for _, out in runs:
            out.seek(0)
            sys.stdout.write(out.read().decode("utf-8", "replace"))
    print(f"all tests: {time.time() - began:.0f} s")
    return max(run.returncode for run, _ in runs)


def _share(out):
    """How far a run is, by the last percentage that pytest printed."""
    text = os.pread(out.fileno(), 1 << 20, max(0, os.fstat(out.fileno()).st_size - 4096)).decode("utf-8", "replace")
    return ([word for word in text.replace("]", " ").split() if word.endswith("%")] or ["0%"])[-1]


if __name__ == "__main__":
    sys.exit(main())
