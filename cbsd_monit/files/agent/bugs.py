"""Unforeseen exceptions: logged with their traceback, and reported to the user as bugs of ours."""

import contextlib
import os
import sys
import time

_logged = set()  # tracebacks: each is logged once per process


def report(node, what, err):
    """
    Log the traceback of ``err`` to standard error and agent.log; return the sentence for the user.

    ``what`` says what failed: "judging web1".
    """
    import traceback

    log = node.in_state("agent.log")
    text = "".join(traceback.format_exception(type(err), err, err.__traceback__, limit=-20))
    if text not in _logged:
        _logged.add(text)
        text = f"{time.strftime('%Y-%m-%dT%H:%M:%S')} bug: {what}\n{text[-16384:]}"
        with contextlib.suppress(OSError):
            print(text, end="", file=sys.stderr, flush=True)
            if not os.path.exists(log) or not os.path.samestat(os.stat(log), os.fstat(2)):
                with open(log, "a", encoding="utf-8", errors="replace") as handle:
                    handle.write(text)
    words = " ".join(f"{what}: {type(err).__name__}: {err}".split())[:300]
    return f"a bug in cbsd_monit, not your configuration: {words}; the traceback is in {log}"
