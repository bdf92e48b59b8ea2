"""What runs in a jail: packages, rc.conf, and service(8) for them.

A package is a name in `var/db/sim-packages` of the jail's root, so it is copied by clones and
images. `nginx` is the real nginx of this machine, on port 80 of the jail's first IPv4 address;
`tcpd` is the small server beside this file. Neither is started on an address outside 127/8: this
machine has no other.
"""

import os
import sys

from sim import procs, programs
from sim.addresses import Addresses
from sim.kernel import TCPD, spawn
from sim.tcpd import listen

NGINX = "/usr/sbin/nginx"
STOP_TIMEOUT = 10

# Serves the jail's index.html, or the jail's name; conf.d lets a test break it.
NGINX_CONF = """\
user root;
worker_processes 1;
daemon on;
pid {data}/var/run/nginx.pid;
error_log {data}/var/log/nginx-error.log;
events {{ worker_connections 256; }}
http {{
    access_log off;
    default_type text/plain;
    client_body_temp_path {data}/var/tmp/nginx-body;
    proxy_temp_path {data}/var/tmp/nginx-proxy;
    fastcgi_temp_path {data}/var/tmp/nginx-fastcgi;
    uwsgi_temp_path {data}/var/tmp/nginx-uwsgi;
    scgi_temp_path {data}/var/tmp/nginx-scgi;
    server {{
        listen {address}:80;
        root {data}/usr/local/www/nginx;
        location / {{ try_files $uri $uri/index.html @name; }}
        location @name {{ return 200 "{name}\\n"; }}
        include {data}/usr/local/etc/nginx/conf.d/*.conf;
    }}
}}
"""


class RcConf:
    """A jail's `etc/rc.conf`, as sysrc(8) edits it."""

    def __init__(self, path):
        self.path = path

    def read(self):
        """The assignments."""
        found = {}
        if os.path.exists(self.path):
            with open(self.path, encoding="utf-8") as source:
                for line in source:
                    key, equals, value = line.strip().partition("=")
                    if equals and not key.startswith("#"):
                        found[key] = value.strip("\"'")
        return found

    def write(self, **settings):
        """Set variables; the others stay."""
        known = {**self.read(), **settings}
        os.makedirs(os.path.dirname(self.path), exist_ok=True)
        with open(self.path, "w", encoding="utf-8") as out:
            out.writelines(f'{key}="{value}"\n' for key, value in known.items())


class Services:
    """service(8) of one jail."""

    def __init__(self, kernel, name, jail):
        self.kernel, self.name, self.jail = kernel, name, jail
        self.data = jail["data"]
        self.conf = RcConf(os.path.join(self.data, "etc/rc.conf"))

    def packages(self):
        """The installed packages."""
        path = os.path.join(self.data, "var/db/sim-packages")
        if not os.path.exists(path):
            return []
        with open(path, encoding="utf-8") as source:
            return source.read().split()

    def enabled(self, service):
        """Whether rc.conf wants the service; tcpd runs unless it is switched off."""
        default = "YES" if service == "tcpd" else "NO"
        return self.conf.read().get(f"{service}_enable", default).upper() in (
            "YES",
            "TRUE",
            "ON",
            "1",
        )

    def boot(self):
        """/etc/rc: start what is installed and enabled."""
        for service in self.packages():
            self._pidfile(service, remove=True)
            if service in STARTERS and self.enabled(service):
                self._start(service)

    def pid(self, service):
        """The pid of a running service, else 0."""
        try:
            with open(self._pidfile(service), encoding="utf-8") as source:
                pid = int(source.read())
        except (FileNotFoundError, ValueError):
            return 0
        return pid if procs.alive(procs.identity(pid)) else 0

    def run(self, service, verb):
        """`service SERVICE VERB`: (exit code, text)."""
        if service not in self.packages() or service not in STARTERS:
            where = "/etc/rc.d or the local startup directories (/usr/local/etc/rc.d)"
            return 1, f"{service} does not exist in {where}, or is not executable\n"
        forced = verb.startswith(("one", "force"))
        plain = verb.removeprefix("one").removeprefix("force")
        if (
            not forced
            and plain in ("start", "stop", "restart", "reload")
            and not self.enabled(service)
        ):
            return 1, (
                f"Cannot '{verb}' {service}. Set {service}_enable to YES in /etc/rc.conf or use"
                f" 'one{verb}' instead of '{verb}'.\n"
            )
        if plain == "restart":
            stopped = self._stop(service)[1]
            code, text = self._start(service)
            return code, stopped + text
        actions = {
            "start": self._start,
            "stop": self._stop,
            "status": self._status,
            "reload": self._reload,
        }
        if plain not in actions:
            return 1, f"/usr/local/etc/rc.d/{service}: unknown directive '{verb}'.\n"
        return actions[plain](service)

    def _pidfile(self, service, remove=False):
        path = os.path.join(self.data, f"var/run/{service}.pid")
        if remove and os.path.exists(path):
            os.unlink(path)
        return path

    def _status(self, service):
        pid = self.pid(service)
        return (
            (0, f"{service} is running as pid {pid}.\n")
            if pid
            else (1, f"{service} is not running.\n")
        )

    def _reload(self, service):
        pid = self.pid(service)
        if not pid:
            return 1, f"{service} not running? (check /var/run/{service}.pid).\n"
        if service == "nginx":  # tcpd has no configuration to read again
            os.kill(pid, programs.SIGHUP)
        return 0, ""

    def _stop(self, service):
        pid = self.pid(service)
        if not pid:
            return 1, f"{service} not running? (check /var/run/{service}.pid).\n"
        ident = procs.identity(pid)
        procs.kill([ident], programs.SIGTERM)
        procs.wait_gone([ident], STOP_TIMEOUT)
        self._pidfile(service, remove=True)
        return 0, f"Stopping {service}.\nWaiting for PIDS: {pid}.\n"

    def _start(self, service):
        pid = self.pid(service)
        if pid:
            return 1, f"{service} already running?  (pid={pid}).\n"
        os.makedirs(os.path.join(self.data, "var/run"), exist_ok=True)
        address = Addresses(self.jail["ip4"]).loopback()
        problem = STARTERS[service](self, address) if address else "no address to listen on\n"
        if problem:
            script = f"/usr/local/etc/rc.d/{service}"
            return 1, f"{problem}{script}: WARNING: failed to start {service}\n"
        self.kernel.add_process(self.name, self.pid(service))
        return 0, f"Starting {service}.\n"

    def _start_nginx(self, address):
        """nginx itself returns when it listens; the text of the problem otherwise."""
        for directory in (
            "var/tmp",
            "var/log",
            "usr/local/www/nginx",
            "usr/local/etc/nginx/conf.d",
        ):
            os.makedirs(os.path.join(self.data, directory), exist_ok=True)
        conf = os.path.join(self.data, "var/run/nginx.conf")
        with open(conf, "w", encoding="utf-8") as out:
            out.write(NGINX_CONF.format(data=self.data, address=address, name=self.name))
        log = os.path.join(self.data, "var/log/nginx-error.log")
        environment = self.kernel.jail_environment(self.name, self.jail, {})
        null = {"stdin": programs.DEVNULL, "stdout": programs.DEVNULL}
        argv = [NGINX, "-c", conf, "-p", self.data, "-e", log]
        code, text = programs.output(argv, "stderr", env=environment, **null)
        return text.decode(errors="replace") if code else ""

    def _start_tcpd(self, address):
        """Listen here and hand the socket over: then it accepts connections at once."""
        try:
            listener = listen(address, int(self.conf.read().get("tcpd_port", "8080")))
        except (OSError, ValueError) as error:
            return f"{error}\n"
        argv = [sys.executable, "-IS", TCPD, "--fd", str(listener.fileno()), self.name]
        environment = self.kernel.jail_environment(self.name, self.jail, {})
        pid = spawn(argv, sys.executable, environment, [listener.fileno()])[0]
        listener.close()
        with open(self._pidfile("tcpd"), "w", encoding="utf-8") as out:
            out.write(str(pid))
        return ""


STARTERS = {"nginx": Services._start_nginx, "tcpd": Services._start_tcpd}


def install(data, packages, sysrc):
    """`pkglist=` and `sysrc=` of jcreate: into the root of the jail, where clones find it."""
    path = os.path.join(data, "var/db/sim-packages")
    os.makedirs(os.path.dirname(path), exist_ok=True)
    names = [package.rpartition("/")[2] for package in packages.split()]
    with open(path, "w", encoding="utf-8") as out:
        out.writelines(name + "\n" for name in names)
    settings = dict(word.split("=", 1) for word in sysrc.split() if "=" in word)
    RcConf(os.path.join(data, "etc/rc.conf")).write(**settings)
