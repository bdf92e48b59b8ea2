#!/usr/bin/env python3
"""
Measure the formula beside what one would otherwise use; `make bench` runs it.

    make bench                               all parts but `huge`, which takes several minutes more
    make bench BENCH_ARGS='heal storm'       these parts only
    make bench BENCH_ARGS=--record           all parts, and a row in docs/benchmarks.md

Writes build/bench.json, one flat object of what this run measured, and build/bench.svg. The exit
code is 1 if a part failed: it raised an error, or what it guarantees was not so.
"""

import argparse
import json
import os
import pathlib
import signal
import sys
import time
import traceback

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from integration import fleet  # noqa: E402

from bench import healing, history, hooks, picture, proof, scale  # noqa: E402
from bench.nodes import REPO, Bench, say  # noqa: E402


def events(bench):
    """From monit's detection to the master's bus; an outage of 60 s; runner beside test.ping."""
    return fleet.measure(60)


PARTS = [hooks.hook, hooks.parallel, healing.heal, healing.delay, healing.storm, proof.proof]
PARTS += [scale.converge, scale.count, scale.bad, scale.agent, events, scale.huge]
PARTS = {part.__name__: part for part in PARTS}


def main():
    form = argparse.RawDescriptionHelpFormatter
    options = argparse.ArgumentParser(description=__doc__, formatter_class=form)
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

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
    (REPO / "build").mkdir(exist_ok=True)
    path = REPO / "build/bench.json"
    path.unlink(missing_ok=True)  # what is there afterwards was measured in this run
    picture_path = path.with_suffix(".svg")
    picture_path.unlink(missing_ok=True)
    bench, found, failed, began = Bench(), {}, [], time.monotonic()
    try:
        for part in given.parts or [part for part in PARTS if part != "huge"]:
            say(f"==> {part}: {PARTS[part].__doc__.strip().splitlines()[0]}")
            at = time.monotonic()
            try:
                keys = PARTS[part](bench)
            except Exception:  # noqa: BLE001 - the other parts are worth knowing all the same
                traceback.print_exc()
                failed.append(part)
                bench.drop_all()
                continue
            found.update(keys)
            for key, value in keys.items():
                say(f"    {key:<44} {value}")
            say(f"    ({time.monotonic() - at:.0f} s)")
            path.write_text(json.dumps(found, indent=1) + "\n")
            if part == "converge":
                picture_path.write_text(picture.draw(found))
    except KeyboardInterrupt:
        say("\ninterrupted")
        return 130
    finally:
        bench.end()
        say(f"everything it started has ended ({time.monotonic() - began:.0f} s)")
    if given.record and not failed:
        history.record(found)
    failures = f"; FAILED: {', '.join(failed)}" if failed else ""
    say(f"build/bench.json: {len(found)} figures{failures}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
