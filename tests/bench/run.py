#!/usr/bin/env python3
"""
Measures the formula beside what one would otherwise use; `make bench` runs it.

    make bench                               all parts
    make bench BENCH_ARGS='heal storm'       these parts only
    make bench BENCH_ARGS=--record           all parts, and a row in docs/benchmarks.md

Writes build/bench.json, one flat object with what was measured in this very run, and build/bench.svg.
"""

import argparse
import json
import os
import pathlib
import signal
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import healing  # noqa: E402
import hooks  # noqa: E402
from bench import REPO, Bench, say  # noqa: E402

PARTS = {
    "hook": hooks.hook,
    "parallel": hooks.parallel,
    "heal": healing.heal,
    "delay": healing.delay,
    "storm": healing.storm,
}


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("parts", nargs="*", metavar="PART", help=" ".join(PARTS))
    options.add_argument("--record", action="store_true", help="append a row to docs/benchmarks.md")
    given = options.parse_args()
    unknown = [part for part in given.parts if part not in PARTS]
    if unknown:
        options.error(f"no part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    if os.geteuid() != 0:
        say("the benchmark needs root: simulated jails listen on their own loopback addresses")
        return 1

    def interrupt(*_):
        raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
    (REPO / "build").mkdir(exist_ok=True)
    path = REPO / "build/bench.json"
    path.unlink(missing_ok=True)  # what is there afterwards was measured in this run
    bench, found, began = Bench(), {}, time.monotonic()
    try:
        for part in given.parts or PARTS:
            say(f"==> {part}: {PARTS[part].__doc__.strip().splitlines()[0]}")
            at = time.monotonic()
            keys = PARTS[part](bench)
            found.update(keys)
            for key, value in keys.items():
                say(f"    {key:<44} {value}")
            say(f"    ({time.monotonic() - at:.0f} s)")
            path.write_text(json.dumps(found, indent=1) + "\n")
    except KeyboardInterrupt:
        say("\ninterrupted")
        return 130
    finally:
        bench.end()
        say(f"everything it started has ended ({time.monotonic() - began:.0f} s)")
    say("build/bench.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
