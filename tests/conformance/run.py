"""Replay recorded cases against a simulated node that is made for it.

    run.py [CASES ...] [options of replay.py]

CASES are files or directories, by default the cases beside this file. A `--cbsd` among the options
means a real node: then nothing is simulated, and replay.py runs with the options as they are.
"""

import os
import shlex
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
SIMULATOR = os.path.join(os.path.dirname(HERE), "sim", "node.py")
CASES = os.path.join(HERE, "cases")


def replay(arguments, root, **options):
    """Run replay.py against a new simulated node in `root`."""
    control = shlex.join([sys.executable, SIMULATOR, "--root", root])
    node = ["--cbsd", shlex.quote(os.path.join(root, "bin/cbsd"))]
    node += ["--workdir", os.path.join(root, "usr/jails")]
    for option in ("reset", "crash", "fail-start"):
        node += [f"--{option}", f"{control} {option}"]
    try:
        return run([*node, *arguments], **options)
    finally:
        subprocess.run([*shlex.split(control), "destroy"], check=False)


def run(arguments, **options):
    """replay.py with these arguments, and with our cases unless others are named."""
    before = ["", *arguments]  # what follows an option belongs to it
    free = [word for word, last in zip(arguments, before) if not last.startswith("--")]
    cases = [] if any(map(os.path.exists, free)) else [CASES]
    command = [sys.executable, os.path.join(HERE, "replay.py"), *arguments, *cases]
    return subprocess.run(command, check=False, **options)


def main(arguments):
    if "--cbsd" in arguments:
        return run(arguments).returncode
    with tempfile.TemporaryDirectory(prefix="cbsd-node-") as directory:
        return replay(arguments, os.path.join(directory, "node")).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
