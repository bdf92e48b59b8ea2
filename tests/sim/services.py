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
from sim.kernel import TCPD, spawn, unlink
from sim.layout import read, read_conf, write
from sim.tcpd import listen

NGINX = "/usr/sbin/nginx"
STOP_TIMEOUT = 10
NOT_RUNNING = "{0} not running? (check /var/run/{0}.pid).\n"

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


def write_conf(path, settings):
    """Make an rc.conf of these variables, as sysrc(8) does."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    write(path, "".join(f'{key}="{value}"\n' for key, value in settings.items()))


class Services:
    """service(8) of one jail."""

    def __init__(self, kernel, name, jail):
        self.kernel, self.name, self.jail = kernel, name, jail
        self.data = jail["data"]

    def conf(self):
        return read_conf(os.path.join(self.data, "etc/rc.conf"))

    def packages(self):
        return read(os.path.join(self.data, "var/db/sim-packages"), missing="").split()

    def enabled(self, service):
        """Whether rc.conf wants the service; tcpd runs unless it is switched off."""
        word = self.conf().get(f"{service}_enable", "YES" if service == "tcpd" else "NO")
        return word.upper() in ("YES", "TRUE", "ON", "1")

    def boot(self):
        """/etc/rc: start what is installed and enabled."""
        for service in self.packages():
            unlink(self._pidfile(service))
            if service in STARTERS and self.enabled(service):
                self._start(service)

    def pid(self, service):
        """The pid of a running service, else 0."""
        try:
            pid = int(read(self._pidfile(service)))
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
        changes = plain in ("start", "stop", "restart", "reload")
        if changes and not forced and not self.enabled(service):
            how = f"Set {service}_enable to YES in /etc/rc.conf or use 'one{verb}'"
            return 1, f"Cannot '{verb}' {service}. {how} instead of '{verb}'.\n"
        if plain == "restart":
            stopped = self._stop(service)[1]
            code, text = self._start(service)
            return code, stopped + text
        if plain not in ("start", "stop", "status", "reload"):
            return 1, f"/usr/local/etc/rc.d/{service}: unknown directive '{verb}'.\n"
        return getattr(self, f"_{plain}")(service)

    def _pidfile(self, service):
        return os.path.join(self.data, f"var/run/{service}.pid")

    def _status(self, service):
        pid = self.pid(service)
        found = f"running as pid {pid}" if pid else "not running"
        return int(not pid), f"{service} is {found}.\n"

    def _reload(self, service):
        pid = self.pid(service)
        if not pid:
            return 1, NOT_RUNNING.format(service)
        if service == "nginx":  # tcpd has no configuration to read again
            os.kill(pid, programs.SIGHUP)
        return 0, ""

    def _stop(self, service):
        pid = self.pid(service)
        if not pid:
            return 1, NOT_RUNNING.format(service)
        ident = procs.identity(pid)
        procs.kill([ident], programs.SIGTERM)
        procs.wait_gone([ident], STOP_TIMEOUT)
        unlink(self._pidfile(service))
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
        for directory in "var/tmp var/log usr/local/www/nginx usr/local/etc/nginx/conf.d".split():
            os.makedirs(os.path.join(self.data, directory), exist_ok=True)
        conf = os.path.join(self.data, "var/run/nginx.conf")
        write(conf, NGINX_CONF.format(data=self.data, address=address, name=self.name))
        log = os.path.join(self.data, "var/log/nginx-error.log")
        environment = self.kernel.jail_environment(self.name, self.jail, {})
        null = {"stdin": programs.DEVNULL, "stdout": programs.DEVNULL}
        argv = [NGINX, "-c", conf, "-p", self.data, "-e", log]
        code, text = programs.output(argv, "stderr", env=environment, **null)
        return text.decode(errors="replace") if code else ""

    def _start_tcpd(self, address):
        """Listen here and hand the socket over: then it accepts connections at once."""
        try:
            listener = listen(address, int(self.conf().get("tcpd_port", "8080")))
        except (OSError, ValueError) as error:
            return f"{error}\n"
        argv = [sys.executable, "-IS", TCPD, "--fd", str(listener.fileno()), self.name]
        environment = self.kernel.jail_environment(self.name, self.jail, {})
        pid = spawn(argv, sys.executable, environment, [listener.fileno()])[0]
        listener.close()
        write(self._pidfile("tcpd"), str(pid))
        return ""


STARTERS = {"nginx": Services._start_nginx, "tcpd": Services._start_tcpd}


def install(data, packages, sysrc):
    """`pkglist=` and `sysrc=` of jcreate: into the root of the jail, where clones find it."""
    path = os.path.join(data, "var/db/sim-packages")
    os.makedirs(os.path.dirname(path), exist_ok=True)
    write(path, "".join(package.rpartition("/")[2] + "\n" for package in packages.split()))
    settings = dict(word.split("=", 1) for word in sysrc.split() if "=" in word)
    conf = os.path.join(data, "etc/rc.conf")
    write_conf(conf, {**read_conf(conf), **settings})
