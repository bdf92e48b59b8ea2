#!/usr/bin/env python3
"""
All tests, as pytest runs side by side; prints wall, processor and the slowest five of each run.

What judges by seconds comes first and two wide.  The rest goes four wide: most of it waits.
With arguments it is one pytest run with them: `make test PYTEST_ARGS='-k wake tests/unit'`.
"""

import concurrent.futures
import ctypes
import os
import pathlib
import re
import resource
import subprocess
import sys
import tempfile
import threading
import time

REPO = pathlib.Path(__file__).resolve().parents[1]
FUNCTIONAL = "tests/functional/test_{}.py".format
PYTEST = [sys.executable, "-m", "pytest"]
REST = ["tests"]  # what no other run names
BY_SECONDS = [[FUNCTIONAL("timeline")], [FUNCTIONAL("storm")]]
# The longest first.
OTHERS = [
    ["tests/integration/test_events.py"],
    [FUNCTIONAL("kills")],
    ["tests/integration/test_fleet.py"],
    [FUNCTIONAL("lifecycle")],
    [FUNCTIONAL("publish_faults")],
    [FUNCTIONAL("loop")],
    [FUNCTIONAL("sls")],
    ["tests/unit"],
    REST,
    [FUNCTIONAL("scale")],
    ["tests/conformance"],
]
SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER of Linux


def measured(argv):
    """
    Run ``argv``, print the processor seconds of it and of all that it started; returns its code.

    On Linux its orphans become ours, so daemons count as soon as they have ended.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)
    child = subprocess.Popen(argv, cwd=REPO)
    code = None
    while code is None:
        pid, status = os.wait()
        if pid == child.pid:
            code = child.returncode = os.waitstatus_to_exitcode(status)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"processor {used.ru_utime + used.ru_stime:.0f}", flush=True)
    return code


class Suite:
    """The runs of one `make test`, and what is printed of them."""

    def __init__(self, folder):
        self.folder, self.began, self.turn = folder, time.monotonic(), threading.Lock()
        runs = BY_SECONDS + OTHERS
        self.left, self.codes, self.processor = [run[0] for run in runs], [], 0
        self.ignored = [f"--ignore={path}" for run in runs if run != REST for path in run]

    def one(self, run):
        began, name = time.monotonic(), run[0].replace("/", ".")
        more = self.ignored if run == REST else []
        # A folder of its own for each: pytest removes the older ones of its common one.
        more = [*more, "-q", "--durations=5", f"--basetemp={self.folder}/{name}"]
        argv = [sys.executable, __file__, "--measured", *PYTEST, *run, *more]
        argv += ["-p", "no:cacheprovider"]
        done = subprocess.run(
            argv, cwd=REPO, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
        )
        text, took = done.stdout.decode("utf-8", "replace"), time.monotonic() - began
        processor = int((re.findall(r"^processor (\d+)$", text, re.M) or [0])[-1])
        with self.turn:
            self.left.remove(run[0])
            self.codes.append(done.returncode)
            self.processor += processor
            if done.returncode:
                print(text)
            print(f"==> {run[0]}: {took:.0f} s, processor {processor} s: {outcome(text)}")
            for line in re.findall(r"^ *[\d.]+s (?:setup|call|teardown) .*$", text, re.M):
                print("   ", line)
            print(f"at {self.seconds()} s, still to come: {' '.join(self.left)}", flush=True)

    def go(self):
        """Two runs at a time until those by seconds are over, then four."""
        waiting = [*BY_SECONDS, *OTHERS][::-1]
        timed = [run[0] for run in BY_SECONDS]

        def work():
            while waiting:
                self.one(waiting.pop())

        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            workers = [pool.submit(work), pool.submit(work)]
            while any(name in self.left for name in timed):
                time.sleep(0.1)
            workers += [pool.submit(work), pool.submit(work)]
            for worker in workers:
                worker.result()

    def seconds(self):
        return round(time.monotonic() - self.began)


def outcome(text):
    """pytest's last line: how many passed and failed."""
    found = re.findall(r"^=* ?((?:\d+ \w+|no tests)\b.* in [\d.]+s.*?)[ =]*$", text, re.M)
    return found[-1] if found else "no result"


def main():
    if sys.argv[1:2] == ["--measured"]:
        return measured(sys.argv[2:])
    if sys.argv[1:]:
        return subprocess.call([*PYTEST, *sys.argv[1:]], cwd=REPO)
    with tempfile.TemporaryDirectory() as folder:
        suite = Suite(folder)
        suite.go()
    print(f"all tests: {suite.seconds()} s, processor {suite.processor} s")
    return max(suite.codes)


if __name__ == "__main__":
    sys.exit(main())
