"""
What arrives on the bus and what follows: two real minions, a master with the reactor as shipped.

The tests follow one another: switched on, a failure, an outage, an attack, the runner, cleaned.
"""

import email
import http.server
import json
import os
import pathlib
import socketserver
import subprocess
import sys
import threading
import time

import pytest
import yaml
from node_on_salt import FULL

from . import fleet as fleets

REPO = pathlib.Path(__file__).resolve().parents[2]
EXAMPLE = REPO / "cbsd_monit/reactor/master.conf.example"
# Of an outage; `make bench` measures 60 s and 200 transitions.
OUTAGE = float(os.environ.get("CBSD_MONIT_OUTAGE", "10"))
TRANSITIONS = 200 if FULL else 100
FORGED = 3400 if FULL else 1000  # each in three ways
ENVS = 20
HTTP = {"http": {"type": "http", "port": 80}}
NGINX = ("pkglist=nginx", "sysrc=nginx_enable=YES")


class Told:
    """Where people are told: a web server, and a mail server that keeps what it gets."""

    def __init__(self):
        self.posts, self.mails = [], []
        posts, mails = self.posts, self.mails

        class Web(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                posts.append((self.path, json.loads(body)))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *args):
                pass

        class Mail(socketserver.StreamRequestHandler):
            def handle(self):
                say = lambda words: self.wfile.write(words + b"\r\n")  # noqa: E731
                say(b"220 test")
                while line := self.rfile.readline():
                    verb = line[:4].upper()
                    if verb == b"DATA":
                        say(b"354 go on")
                        text = b""
                        while (line := self.rfile.readline()) != b".\r\n":
                            text += line
                        mails.append(email.message_from_bytes(text))
                    elif verb == b"QUIT":
                        return say(b"221 bye")
                    say(b"250 ok")

        self.web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Web)
        self.mail = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Mail)
        for server in (self.web, self.mail):
            threading.Thread(target=server.serve_forever, daemon=True).start()

    def settings(self):
        """The example's `cbsd_monit_notify`, with the places changed to ours."""
        url = f"http://127.0.0.1:{self.web.server_address[1]}"
        mail = {
            "to": ["ops@example.net"],
            "from": "salt@example.net",
            "port": self.mail.server_address[1],
        }
        return [
            {"webhook": {"url": f"{url}/hook"}},
            {"chat": {"url": f"{url}/chat"}},
            {"mail": mail},
        ]

    def close(self):
        for server in (self.web, self.mail):
            server.shutdown()
            server.server_close()


class Uplink:
    """What the node's own check connects to; it comes back at the same port."""

    def __init__(self):
        self.port = 0
        self.up()

    def up(self):
        class Server(socketserver.ThreadingTCPServer):
            allow_reuse_address = True

        self.server = Server(("127.0.0.1", self.port), socketserver.BaseRequestHandler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def down(self):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture(scope="module")
def uplink():
    found = Uplink()
    yield found
    found.down()


@pytest.fixture(scope="module")
def people():
    told = Told()
    yield told
    told.close()


@pytest.fixture(scope="module")
def fleet(people, uplink):
    if os.geteuid() != 0:
        pytest.skip("needs root: simulated jails listen on their own loopback addresses")
    example = yaml.safe_load(EXAMPLE.read_text().replace("/usr/local/etc/salt/states", str(REPO)))
    assert [next(iter(hook)) for hook in example["cbsd_monit_notify"]] == [
        "webhook",
        "chat",
        "mail",
        "runner",
    ]
    made = fleets.Fleet(
        2, net=33, reactor=example["reactor"], master={"cbsd_monit_notify": people.settings()}
    )
    quick = {"start_period": "2s", "restart": {"attempts": 1, "delay": "1s"}}
    made.pillar(
        {
            **fleets.QUICK,
            "budget": {"max_concurrent": 4, "storm_min": 50},
            "nodes": {"hv1": {"checks": {"uplink": {"type": "tcp", "port": uplink.port}}}},
            "groups": {
                "web": {"match": "a*", "checks": HTTP},
                "plain": {"match": "b*", "checks": {"up": {"type": "running"}}},
                "asks": {"match": "e*", "checks": HTTP, "on_failure": ["event"]},
                "bad": {"match": "g*", "checks": HTTP, **quick},
                "warns": {
                    "match": "w*",
                    "checks": {"http": {**HTTP["http"], "on_failure": "alert"}},
                },
                "later": {"match": "new*", "checks": {"up": {"type": "running"}}},
            },
        }
    )

    def jails(name, node):
        n = name[-1]
        for number, word in enumerate("waeg"):
            made.jail(name, f"{word}{n}", number, *NGINX)
        for number in range(4, ENVS):
            made.jail(name, f"b{n}-{number}", number)

    try:
        fleets.each(made, jails)
        with made:
            yield made
    finally:
        made.stop()


def restarts(fleet):
    return {
        name: len((d.folder / "restarts").read_text().split()) for name, d in fleet.minions.items()
    }


def test_a_highstate_switches_it_on_and_restarts_each_minion_once(fleet):
    fleet.switch_on()
    assert set(restarts(fleet).values()) == {1}
    second = fleet.highstate()
    assert {m: [r["__id__"] for r in s.values() if r["changes"]] for m, s in second.items()} == {
        m: [] for m in fleet.nodes
    }
    assert set(restarts(fleet).values()) == {1}

    # All that were there are told: twenty envs a node, in few messages.
    def created(listener):
        records = fleets.unique(listener.records())
        return {(r["node"], r["env"]) for r in records if r["transition"] == "created"}

    fleet.listener.wait(lambda s: len(created(s)) >= 2 * ENVS, 20)
    batches = [d for _, t, d in fleet.listener.events() if t.endswith("/batch")]
    assert {d["id"] for d in batches} == set(fleet.nodes) and len(batches) <= 9
    assert len(created(fleet.listener)) == 2 * ENVS


def test_masterless_says_in_one_sentence_that_it_needs_a_master(fleet):
    node = fleet.nodes["hv1"]
    (found,) = node.apply("cbsd_monit.events")
    assert found["result"] is True and not found["changes"] and "need a master" in found["__id__"]


def test_a_killed_service_is_told_rechecked_and_healed_at_its_node_only(fleet):
    fleets.each(
        fleet,
        lambda name, _: fleets.begin(fleet, name, f"a{name[-1]}", f"e{name[-1]}", f"g{name[-1]}"),
    )
    since = time.time()
    commands = len(fleet.nodes["hv1"].commands())
    fleet.nodes["hv2"].sim.cbsd("jexec", "jname=e2", "service", "nginx", "stop")

    def seen(listener):
        return [
            r["transition"]
            for r in fleets.unique(listener.records("hv2"))
            if r["env"] == "e2" and r["time"] > since
        ]

    fleet.listener.wait(lambda s: "healthy" in seen(s), 40)
    assert seen(fleet.listener) == ["failing", "healing", "healed", "healthy"], fleet.nodes[
        "hv2"
    ].agent_log()
    assert fleet.listener.jobs("cbsd_monit.recheck", since) == [["hv2"]]
    verbs = {argv[0] for argv in fleet.nodes["hv1"].commands()[commands:]}
    assert not verbs & {"jstart", "jstop", "jrestart"}
    record = next(
        r
        for _, r in fleet.listener.records("hv2")
        if r["transition"] == "healed" and r["env"] == "e2"
    )
    assert {"id", "time", "env", "emulator", "check", "reason", "attempt", "duration"} <= set(
        record
    )


def test_an_operators_stop_and_start_are_one_record_each(fleet):
    since = time.time()
    node = fleet.nodes["hv2"]
    node.sim.cbsd("jstop", "jname=a2", "inter=0")
    assert node.wait_state("a2", "stopped", 30)
    fleets.begin(fleet, "hv2", "a2")

    def seen(listener):
        records = fleets.unique(listener.records("hv2"))
        return [r["transition"] for r in records if r["env"] == "a2" and r["time"] > since]

    fleet.listener.wait(lambda s: "healthy" in seen(s), 30)
    assert seen(fleet.listener) == ["stopped", "starting", "healthy"]


def test_an_env_that_appears_gets_its_checks(fleet):
    since = time.time()
    fleet.jail("hv1", "new1", 30)
    fleet.nodes["hv1"].sim.cbsd("jstart", "jname=new1", "inter=0")
    assert fleet.nodes["hv1"].wait_state("new1", "healthy", 30), fleet.logs()
    assert {tuple(t) for t in fleet.listener.jobs("cbsd_monit.recheck", since)} == {("hv1",)}


def test_people_are_told_once_when_the_agent_gives_up(fleet, people):
    fleet.nodes["hv2"].sim.fail_start("g2")
    fleet.nodes["hv2"].sim.cbsd("jexec", "jname=g2", "service", "nginx", "stop")
    alone = fleet.listener.wait(
        lambda s: [d for _, t, d in s.events() if t == "cbsd_monit/hv2/g2/gave_up"], 60
    )
    assert alone, fleet.nodes["hv2"].agent_log()
    batch = [
        r for r in fleets.unique(fleet.listener.records("hv2")) if r["transition"] == "gave_up"
    ]
    assert [r["id"] for r in batch] == [alone[0]["data"]["id"]] and alone[0]["id"] == "hv2"
    until = time.monotonic() + 30
    while len(people.mails) < 1 and time.monotonic() < until:
        time.sleep(0.1)
    posts = [(path, body) for path, body in people.posts if "gave_up" in body["text"]]
    assert sorted(path for path, _ in posts) == ["/chat", "/hook"]
    for _, body in posts:
        assert body["text"].startswith("hv2/g2 gave_up (")
        assert body["text"].endswith("; end it: salt-run cbsd_monit.retry env=g2")
    assert people.mails[0]["Subject"] == "cbsd_monit: hv2/g2 gave_up"


def told(people, *starts):
    """Wait until each of ``starts`` begins a line that people got; return those that did not."""
    until, missing = time.monotonic() + 60, starts
    while missing and time.monotonic() < until:
        lines = [line for _, body in list(people.posts) for line in body["text"].splitlines()]
        missing = [start for start in starts if not any(line.startswith(start) for line in lines)]
        time.sleep(0.1)
    return missing


def alone(fleet, tag):
    return fleet.listener.wait(lambda s: [d for _, t, d in s.events() if t == tag], 60)


def test_people_are_told_of_a_warning_and_that_it_is_over(fleet, people):
    node = fleet.nodes["hv1"]
    fleets.begin(fleet, "hv1", "w1")
    before, since = node.running()["w1"], time.time()
    node.sim.cbsd("jexec", "jname=w1", "service", "nginx", "stop")
    assert alone(fleet, "cbsd_monit/hv1/w1/warning"), node.agent_log()
    found = fleet.run("cbsd_monit.failing", "env=w1")["envs"]
    assert [(r["env"], r["state"], r["check"]) for r in found] == [("w1", "warning", "http")]
    node.sim.cbsd("jexec", "jname=w1", "service", "nginx", "start")
    assert alone(fleet, "cbsd_monit/hv1/w1/recovered"), node.agent_log()
    assert told(people, "hv1/w1 warning (http)", "hv1/w1 recovered") == []
    records = fleets.unique(fleet.listener.records("hv1"))
    seen = [r["transition"] for r in records if r["env"] == "w1" and r["time"] > since]
    assert sorted(seen) == ["healthy", "recovered", "warning"]
    assert node.running()["w1"] == before


def test_people_are_told_what_ails_a_node_itself_and_that_it_is_over(fleet, people, uplink):
    since, node = time.time(), fleet.nodes["hv1"]
    uplink.down()
    try:
        assert alone(fleet, "cbsd_monit/hv1/(node)/failing"), node.agent_log()
        (row,) = fleet.run("cbsd_monit.failing", "env=(node)")["envs"]
        assert (row["node"], row["state"], row["check"]) == ("hv1", "failing", "uplink")
    finally:
        uplink.up()
    assert alone(fleet, "cbsd_monit/hv1/(node)/healthy"), node.agent_log()
    assert told(people, "hv1/(node) failing (uplink)", "hv1/(node) healthy (uplink)") == []
    assert fleet.listener.jobs("cbsd_monit.recheck", since) == []


def test_an_outage_of_master_and_minion_loses_nothing(fleet):
    plain = {name: [f"b{name[-1]}-{k}" for k in range(5, 9)] for name in fleet.nodes}
    found = fleets.outage(fleet, plain, OUTAGE, TRANSITIONS)
    assert found["missing"] == {} and found["arrived"] == found["transitions"] >= TRANSITIONS
    fleet.wait_minions()


def test_an_engine_whose_minion_was_killed_ends_and_the_next_goes_on(fleet):
    since = time.time()
    minion = fleet.minions["hv2"]
    minion.kill_parents()
    plain = {"hv2": ["b2-9"]}
    fleets.turn(fleet, plain, lambda: sum(map(len, fleets.told(fleet, since).values())) >= 6, 20)
    minion.start()
    _, lost = fleets.accounted(fleet, since, plain, 60)
    assert lost == {}


def test_a_highstate_a_sync_and_a_refresh_in_a_burst_lose_nothing(fleet):
    fleet.wait_minions()
    since, over = time.time(), threading.Event()
    plain = {name: [f"b{name[-1]}-{k}" for k in range(10, 12)] for name in fleet.nodes}
    burst = threading.Thread(target=fleets.turn, args=(fleet, plain, over.is_set, 120, 0.5))
    burst.start()
    try:
        fleet.highstate("hv1")
        fleet.salt("*", "saltutil.sync_all")
        fleet.salt("*", "saltutil.refresh_modules")
        fleet.salt("*", "saltutil.refresh_pillar")
    finally:
        over.set()
        burst.join()
    truth, lost = fleets.accounted(fleet, since, plain, 60)
    assert lost == {} and sum(map(len, truth.values())) > 30
    assert set(restarts(fleet).values()) == {1}


HOSTILE = """
import json, sys
import salt.channel.client, salt.config, salt.minion
opts = salt.config.minion_config(sys.argv[1])
opts.update(salt.minion.resolve_dns(opts))
mark, number = sys.argv[2], int(sys.argv[3])
touch = "touch " + mark
texts = [
    "x\\nowned:\\n  runner.salt.cmd:\\n    - args:\\n      - fun: cmd.run\\n      - cmd: " + touch,
    "{{ salt['cmd.run']('" + touch + "') }}", "__slot__:salt:cmd.run('" + touch + "')",
    "$(" + touch + ")", "`" + touch + "`", "\\x1b[2J", "a" * 5000, "\\U0001f4a3", "';|&",
    "(node)", "(node)/x",
]
shapes = [[], {}, "x", 7, None, {"records": "x"}, {"records": {"a": 1}}]
shapes.append({"records": [1, None, {"env": 7, "transition": []}]})
def events():
    for n in range(number):
        text = texts[n % len(texts)]
        name = text if n % 3 else "b2-4"
        record = {"id": f"f{n}", "time": 1, "node": "hv2", "env": name, "transition": "failing",
                  "event": True, "check": text, "reason": text, "fun": "cmd.run", "tgt": "*"}
        gave_up = {**record, "transition": "gave_up"}
        batch = {"schema": 1, "records": [record]}
        for forged in ("hv2", "*", text):
            if n % 4 == 0:
                yield f"cbsd_monit/{forged}/batch", {"id": forged, "data": batch}
            elif n % 4 == 1:
                yield f"cbsd_monit/hv2/{name}/gave_up", {"id": forged, "data": gave_up}
            elif n % 4 == 2:
                yield "salt/minion/hv2/start", {"id": forged, "data": text}
            else:
                data = {"id": forged, "return": text, "fun": "cmd.run", "jid": text}
                yield "salt/job/20260101000000000000/ret/hv2", data
with salt.channel.client.ReqChannel.factory(opts) as channel:
    sent, batch = 0, []
    for tag, data in events():
        batch.append({"tag": tag, "data": data})
        if len(batch) == 100:
            channel.send({"cmd": "_minion_event", "id": opts["id"], "events": batch})
            sent, batch = sent + 100, []
    if batch:
        channel.send({"cmd": "_minion_event", "id": opts["id"], "events": batch})
    for shape in shapes:
        channel.send({"cmd": "_minion_event", "id": opts["id"], "tag": "cbsd_monit/hv2/batch",
                      "data": shape})
print(sent + len(batch))
"""


def test_a_hostile_minion_gains_a_look_and_no_more(fleet, people, tmp_path):
    mark, since = tmp_path / "owned", time.time()
    plain = {name: len(node.commands()) for name, node in fleet.nodes.items()}
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            HOSTILE,
            str(fleet.minions["hv1"].folder / "minion"),
            str(mark),
            str(FORGED),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
        cwd="/",
    )
    assert done.returncode == 0 and int(done.stdout.split()[-1]) == 3 * FORGED, done.stderr
    # A true event of another node arrives at once; the reaction comes after the burst.
    fleet.nodes["hv2"].sim.cbsd("jexec", "jname=e2", "service", "nginx", "stop")
    came = fleet.listener.wait(
        lambda s: [
            r
            for _, r in s.records("hv2")
            if r["env"] == "e2" and r["transition"] == "failing" and r["time"] > since
        ],
        120,
    )
    assert came
    healed = fleet.listener.wait(
        lambda s: [
            r
            for _, r in s.records("hv2")
            if r["env"] == "e2" and r["transition"] == "healed" and r["time"] > since
        ],
        400,
    )
    assert healed, fleet.logs()
    assert not mark.exists()
    # Whatever was forged: rechecks, each of one accepted minion, and few.
    jobs = [
        (d["fun"], d["tgt"], d["arg"])
        for m, t, d in fleet.listener.events()
        if t.startswith("salt/job/") and m >= since
    ]
    assert {fun for fun, _, _ in jobs} <= {"cbsd_monit.recheck"} and len(jobs) < 60, jobs[:5]
    assert {tuple(tgt) for _, tgt, _ in jobs} <= {("hv1",), ("hv2",)}
    assert not [arg for _, _, arg in jobs if "(node)" in json.dumps(arg)]
    verbs = {"jstart", "jstop", "jrestart", "bstart", "bstop"}
    for name, node in fleet.nodes.items():
        ran = [argv for argv in node.commands()[plain[name] :] if argv[0] in verbs]
        ran = [argv for argv in ran if "jname=e2" not in argv]
        assert ran == [], "a forged failure heals nothing that is well"
    assert len(people.posts) < 60
    assert not [body for _, body in people.posts if "\x1b" in body["text"]]


def test_the_runner_shows_the_fleet(fleet):
    found = fleet.run("cbsd_monit.fleet")
    assert "no_answer" not in found and "errors" not in found
    rows = {(r["node"], r["env"]): r for r in found["envs"]}
    assert len(rows) == 2 * ENVS + 3 and rows["hv2", "e2"]["state"] == "healthy"
    assert {rows[name, "(node)"]["state"] for name in fleet.nodes} == {"healthy"}
    assert [place for place, row in rows.items() if row["age"] is None] == []
    assert [r["env"] for r in fleet.run("cbsd_monit.failing")["envs"]] == ["g2"]
    assert [(r["node"], r["env"]) for r in fleet.run("cbsd_monit.fleet", "group=web")["envs"]] == [
        ("hv1", "a1"),
        ("hv2", "a2"),
    ]
    silenced = fleet.run("cbsd_monit.silence", "1h", "kernel upgrade", "group=web", "who=ann")[
        "silenced"
    ]
    assert {m: list(envs) for m, envs in silenced.items()} == {
        "hv1": ["a1"],
        "hv2": ["a2"],
    }
    (row,) = [r for r in fleet.run("cbsd_monit.fleet", "env=a2")["envs"]]
    assert row["silence"]["by"] == "ann" and row["silence"]["reason"] == "kernel upgrade"
    fleet.run("cbsd_monit.unsilence", "group=web")
    history = fleet.run("cbsd_monit.history", "e2")["envs"]
    assert [r["transition"] for r in history][-4:] == ["failing", "healing", "healed", "healthy"]
    done = fleet.cli("salt-run", "cbsd_monit.silence", "1h", "all of them")
    assert "give env, group or node" in done.stdout + done.stderr
    assert not [r for r in fleet.run("cbsd_monit.fleet")["envs"] if r["state"] == "silenced"]


def test_what_was_given_up_and_works_again_is_well_without_a_restart(fleet):
    node = fleet.nodes["hv1"]

    def inside(*argv):
        assert node.sim.cbsd("jexec", "jname=g1", *argv).returncode == 0

    inside("sysrc", "nginx_enable=NO")
    inside("service", "nginx", "onestop")
    assert node.wait_state("g1", "gave_up", 90), node.agent_log()
    assert fleet.run("cbsd_monit.retry", "env=a*") == {"retried": {}}
    inside("sysrc", "nginx_enable=YES")
    inside("service", "nginx", "start")
    before = node.running()["g1"]
    assert fleet.run("cbsd_monit.retry", "env=g1") == {"retried": {"hv1": ["g1"]}}
    assert node.wait_state("g1", "healthy", 60), node.agent_log()
    assert node.running()["g1"] == before


def test_clean_takes_it_back(fleet):
    found = fleet.salt("hv2", "state.apply", "cbsd_monit.clean", timeout=240)["hv2"]
    assert isinstance(found, dict) and {r["result"] for r in found.values()} == {True}, found
    folder = fleet.minions["hv2"].folder
    assert (
        not (folder / "minion.d/cbsd_monit.conf").exists()
        and not fleet.nodes["hv2"].state_dir.exists()
    )
    until = time.monotonic() + 30
    while restarts(fleet)["hv2"] < 2 and time.monotonic() < until:
        time.sleep(0.2)
    assert restarts(fleet)["hv2"] == 2
