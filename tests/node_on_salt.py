"""A node that runs this formula: simulated CBSD, masterless Salt, real monit, the agent."""

import contextlib
import json
import logging
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time
from xml.etree import ElementTree

REPO = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPO / "tests"))

from sim import Node  # noqa: E402

# Sizes and kill points that the daily run leaves out.
FULL = os.environ.get("CBSD_MONIT_POINTS") == "all"
DEPLOYED = ("cbsd_monit", "_modules", "_states", "_beacons", "_engines", "_runners", "_resources")
# As FreeBSD's package ships it: with a TCP port and a well-known password.
MONITRC_SAMPLE = """\
# Sample of monit's control file
set daemon 30
set log {root}/log/monit.log
set pidfile {root}/var/run/monit.pid
set idfile {root}/var/db/monit.id
set statefile {root}/var/db/monit.state
set httpd port 28{port} and
    use address localhost
    allow localhost
    allow admin:monit
"""


def file_root(path):
    """A Salt file root that serves only what is deployed."""
    path.mkdir(parents=True, exist_ok=True)
    for name in DEPLOYED:
        if (REPO / name).is_dir() and not (path / name).is_symlink():
            (path / name).symlink_to(REPO / name)
    return path


class SaltNode:
    """The node below ``root``; ``minion`` is its id."""

    def __init__(self, root, minion="demo"):
        self.root = pathlib.Path(root).resolve()
        self.minion, self.synced, self.loaded, self.caller = minion, False, None, None
        self.sim = Node(str(self.root))
        self.run_dir = self.root / "var/run/cbsd_monit"
        self.state_dir = self.root / "var/db/cbsd_monit"
        self.monitrc = self.root / "etc/monitrc"
        self.wake = self.root / "usr/local/libexec/cbsd_monit/wake"

    def lookup(self):
        """The pillar's lookup that keeps everything below ``root``."""
        root = str(self.root)
        return {
            "package": False,
            "service": False,
            "workdir": str(self.sim.workdir),
            "rc_conf": f"{root}/etc/rc.conf",
            "cbsd": f"{root}/bin/cbsd",
            "jls": f"{root}/bin/jls",
            "jexec": f"{root}/bin/jexec",
            "vmm": f"{root}/dev/vmm",
            "ps": f"{root}/bin/ps",
            "rctl": f"{root}/bin/rctl",
            "distdir": f"{root}/usr/local/cbsd",
            "boot_id": f"{root}/kernel/boot_id",
            "libexec": str(self.wake.parent),
            "config": f"{root}/usr/local/etc/cbsd_monit.json",
            "state": str(self.state_dir),
            "run": str(self.run_dir),
            "monit": shutil.which("monit"),
            "monitrc": str(self.monitrc),
            "monitrc_sample": f"{root}/etc/monitrc.sample",
            "monit_start": [shutil.which("monit"), "-c", str(self.monitrc)],
            "cron": f"{root}/etc/cron.d/cbsd_monit",
            "python": sys.executable,
            "rootgroup": "root",
        }

    def create(self):
        self.sim.create(name=self.minion)
        for name in (
            "etc/salt",
            "etc/cron.d",
            "salt/pillar",
            "var/run",
            "var/db",
            "log",
            "usr/local/etc",
        ):
            (self.root / name).mkdir(parents=True, exist_ok=True)
        sample = MONITRC_SAMPLE.format(root=self.root, port=f"{os.getpid() % 1000:03d}")
        (self.root / "etc/monitrc.sample").write_text(sample)
        minion = {
            "id": self.minion,
            "root_dir": str(self.root / "salt"),
            "log_file": str(self.root / "log/salt.log"),
            "file_client": "local",
            "file_roots": {"base": [str(file_root(self.root / "salt/files"))]},
            "pillar_roots": {"base": [str(self.root / "salt/pillar")]},
            "fileserver_list_cache_time": 0,
        }
        (self.root / "etc/salt/minion").write_text(json.dumps(minion))
        (self.root / "salt/pillar/top.sls").write_text("base: {'*': [cbsd_monit]}\n")
        self.pillar({})

    def pillar(self, settings):
        """Write the pillar ``cbsd_monit``; the paths of this node are added."""
        full = {**settings, "lookup": {**self.lookup(), **settings.get("lookup", {})}}
        path = self.root / "salt/pillar/cbsd_monit.sls"
        path.write_text("#!json\n" + json.dumps({"cbsd_monit": full}))

    def salt(self, *args, check=True):
        """One ``salt-call --local``; returns its data."""
        salt_call = os.path.join(os.path.dirname(sys.executable), "salt-call")
        argv = [
            salt_call,
            "-c",
            str(self.root / "etc/salt"),
            "--local",
            "--out=json",
            "-l",
            "error",
            *args,
        ]
        done = subprocess.run(
            argv, capture_output=True, text=True, check=False, timeout=600, cwd="/"
        )
        try:
            return json.loads(done.stdout)["local"]
        except (ValueError, KeyError):
            if check:
                raise RuntimeError(f"{' '.join(args)}: {done.stdout}\n{done.stderr}") from None
            return done.stdout + done.stderr

    def apply(self, sls="cbsd_monit", test=False):
        """
        The results of ``state.apply``, in order; raises if the run itself failed.

        The first one syncs the modules.
        """
        sync, self.synced = [] if self.synced else ["sync_mods=all"], True
        found = self.salt("state.apply", sls, *sync, *(["test=True"] if test else []))
        if isinstance(found, list):
            raise RuntimeError("\n".join(map(str, found)))
        return sorted(found.values(), key=lambda r: r["__run_num__"])

    def apply_here(self, sls="cbsd_monit", test=False):
        """``apply`` by Salt's loader in this process: a tenth of the processor."""
        import salt.client
        import salt.config

        logging.getLogger("salt").setLevel(logging.ERROR)  # pytest would keep each step's trace
        pillar = (self.root / "salt/pillar/cbsd_monit.sls").read_text()
        if self.loaded != pillar:
            opts = salt.config.minion_config(str(self.root / "etc/salt/minion"))
            if not self.synced:
                self.synced = salt.client.Caller(mopts=dict(opts)).cmd("saltutil.sync_all")
            self.caller, self.loaded = salt.client.Caller(mopts=opts), pillar
        found = self.caller.cmd("state.apply", sls, test=test)
        assert isinstance(found, dict), found
        return sorted(found.values(), key=lambda r: r["__run_num__"])

    @staticmethod
    def summary(results):
        """One line per state, as a person reads it."""
        lines = []
        for r in results:
            mark = {True: "ok", False: "FAILED", None: "would"}[r["result"]]
            mark = "changed" if r["changes"] and r["result"] else mark
            lines.append(f"{mark:<8} {r['__id__']}" + ("" if r["result"] else f": {r['comment']}"))
        return "\n".join(lines)

    def agent(self, *args):
        """One command of the agent, through ``wake``; its standard output."""
        return subprocess.run(
            [str(self.wake), *args],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
            stdin=subprocess.DEVNULL,
        ).stdout

    def status(self):
        return json.loads(self.agent("status") or "{}")

    def wait_state(self, env, state, seconds):
        """True as soon as the agent says that ``env`` is in ``state``."""
        path = self.state_dir / "envs" / f"{env}.json"
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            with contextlib.suppress(OSError, ValueError):
                if json.loads(path.read_text())["state"] == state:
                    return True
            time.sleep(0.05)
        return False

    def history(self, env):
        path = pathlib.Path(self.sim.workdir) / "jails-system" / env / "monit/history.jsonl"
        with contextlib.suppress(OSError):
            return [json.loads(line) for line in path.read_text().splitlines()]
        return []

    def monit(self, *args):
        argv = [shutil.which("monit"), "-B", "-c", str(self.monitrc), *args]
        done = subprocess.run(
            argv, capture_output=True, text=True, check=False, timeout=60, stdin=subprocess.DEVNULL
        )
        return done.stdout + done.stderr

    def services(self, timeout=10):
        """
        monit's services as the elements of its XML status; raises OSError when no monit answers.

        Asks as the `admin` of MONITRC_SAMPLE.
        """
        with socket.socket(socket.AF_UNIX) as monit:
            monit.settimeout(timeout)
            monit.connect(str(self.state_dir / "monit.sock"))
            monit.sendall(
                b"GET /_status?format=xml HTTP/1.0\r\nAuthorization: Basic YWRtaW46bW9uaXQ=\r\n\r\n"
            )
            answer = b"".join(iter(lambda: monit.recv(65536), b""))
        head, _, text = answer.partition(b"\r\n\r\n")
        try:
            return ElementTree.fromstring(text).findall("service")
        except ElementTree.ParseError as err:
            raise OSError(f"{head.decode()} {len(text)} bytes: {err}") from None

    def commands(self, nested=True):
        """The argument lists of all CBSD commands that began so far, oldest first."""
        log = self.sim.log()
        return [r["argv"] for r in log if r["event"] == "start" and (nested or not r["nested"])]

    def running(self):
        """{env: jid or pid} of everything that the simulated kernel runs."""
        status = self.sim.status()
        return {**status["jails"], **status["vms"]}

    def agent_log(self):
        path = self.state_dir / "agent.log"
        return "agent.log:\n" + (path.read_text() if path.exists() else "(none)")

    def _pid(self, path, word):
        """The pid in ``path`` if its command line names ``root`` and ``word``, so it is ours."""
        with contextlib.suppress(OSError, ValueError, IndexError):
            pid = int(path.read_text().split()[0])
            line = subprocess.run(
                ["ps", "-ww", "-o", "command=", "-p", str(pid)],
                capture_output=True,
                text=True,
                check=False,
            ).stdout
            if str(self.root) in line and word in line:
                return pid
        return None

    def kill_monit(self, number=signal.SIGKILL):
        pid = self._pid(self.root / "var/run/monit.pid", "monit")
        if pid:
            with contextlib.suppress(ProcessLookupError):  # ended by the one before
                os.kill(pid, number)
        return pid

    def kill_agent(self, number=signal.SIGKILL):
        pid = self._pid(self.run_dir / "agent.lock", "agent")
        if pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        return pid

    def stop(self):
        """End everything that runs for this node; its files stay."""
        monit = self.kill_monit(signal.SIGTERM)
        for _ in range(3):
            if not self.kill_agent():
                break
            time.sleep(0.1)
        with contextlib.suppress(ProcessLookupError):
            for _ in range(100):
                if not monit:
                    break
                os.kill(monit, 0)
                time.sleep(0.05)
        if (self.root / "kernel").is_dir():
            self.sim.kernel.power_off()

    def destroy(self):
        if self.root.exists():
            self.kill_monit()
            self.stop()
        self.sim.destroy()
        shutil.rmtree(self.root, ignore_errors=True)
