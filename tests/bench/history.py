"""The history in docs/benchmarks.md: one row per recorded run, with the machine that it ran on."""

import os
import pathlib
import platform
import re
import subprocess
import time

from bench.nodes import REPO, say

COLUMNS = {  # heading: key
    "1st × idiomatic": "first_speedup_over_idiomatic_1000",
    "2nd × idiomatic": "second_speedup_over_idiomatic_1000",
    "1st / floor": "first_vs_floor_1000",
    "growth": "growth_exponent",
    "processes": "processes_1000",
    "MB": "peak_rss_mb_1000",
    "hook ms": "hook_added_ms_median",
    "hook p99 ms": "hook_added_ms_p99_staggered_100",
    "detect s": "detect_s_median",
    "heal s": "heal_s_median",
    "bad / clean": "bad_env_vs_clean_1000",
}
HEAD = f"| date | commit | {' | '.join(COLUMNS)} | machine |\n|{'---|' * (len(COLUMNS) + 3)}\n"


def first_line(*argv):
    """The first line that a program prints, or an empty text."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False, cwd=REPO)
    except OSError:
        return ""
    return (done.stdout.splitlines() or [""])[0].strip()


def machine():
    """What the figures depend on; neither names nor paths."""
    model = platform.machine()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    if cpuinfo.exists():
        found = re.search(r"model name\s*:\s*(.*)", cpuinfo.read_text())
        model = found.group(1).strip() if found else model
    import salt.version

    system = f"{platform.system()} {platform.release().split('-')[0]}"
    monit = first_line("monit", "-V").replace("This is Monit version", "monit")
    versions = f"Python {platform.python_version()}, Salt {salt.version.__version__}, {monit}"
    return f"{os.cpu_count()} × {model}, {memory:.0f} GB, {system}, {versions}"


def record(found):
    """Append a row of the keys ``found`` to docs/benchmarks.md; a missing key is an empty cell."""
    path = REPO / "docs/benchmarks.md"
    text = path.read_text()
    if HEAD not in text:
        text = text.rstrip() + "\n\n" + HEAD
    product = ("cbsd_monit", "_modules", "_states")
    changed = first_line("git", "status", "--porcelain", "--untracked-files=no", "--", *product)
    commit = first_line("git", "rev-parse", "--short", "HEAD") + ("+" if changed else "")
    cells = [time.strftime("%Y-%m-%d", time.gmtime()), commit]
    cells += [str(found.get(key, "")) for key in COLUMNS.values()]
    path.write_text(text.rstrip("\n") + "\n| " + " | ".join([*cells, machine()]) + " |\n")
    say("a row was added to docs/benchmarks.md")
