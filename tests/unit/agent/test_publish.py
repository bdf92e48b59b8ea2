"""Facts, templates, and what monit may be told."""

import contextlib
import pathlib
import shutil
import signal
import socket
import subprocess
import threading

import cbsd
import monit
import publish
import pytest
from publish import EnvError

UPSTREAM = """check host %%JNAME%% with address %%IPV4_FIRST%%
  if failed port 80 protocol http then exec "/usr/local/bin/cbsd jrestart %%JNAME%%" repeat every 1 cycles
"""


@pytest.mark.parametrize(
    ("ip4_addr", "first", "public", "private", "ipv6"),
    [
        ("10.0.0.1/24", "10.0.0.1", "", "10.0.0.1", ""),
        ("em0#10.0.0.3/24", "10.0.0.3", "", "10.0.0.3", ""),
        ("vhid_1#10.0.0.7/24", "10.0.0.7", "", "10.0.0.7", ""),
        ("8.8.8.8/32,192.168.1.5/24", "8.8.8.8", "8.8.8.8", "192.168.1.5", ""),
        ("fde4::1/64,10.1.1.1", "10.1.1.1", "", "10.1.1.1", "fde4::1"),
        ("fde4::1/64", "", "", "", "fde4::1"),
        ("DHCP", "", "", "", ""),
        ("REALDHCP", "", "", "", ""),
        ("0", "", "", "", ""),
        ("", "", "", "", ""),
    ],
)
def test_addresses_follow_cbsds_rules(ip4_addr, first, public, private, ipv6):
    assert cbsd.addresses(ip4_addr) == {
        "ipv4_first": first,
        "ipv4_first_public": public,
        "ipv4_first_private": private,
        "ipv6_first": ipv6,
    }


def facts(node, env="lb1", **row):
    return publish.facts_of(node, env, {"jname": env, "ip4_addr": "10.0.0.1/24", **row}, {})


def test_upstreams_template_heals_instead_of_restarting(node):
    text = publish.EnvText(node, "lb1", UPSTREAM, facts(node), trusted=False)
    assert f'exec "{node.wake} monit lb1" repeat' in text.text
    assert text.services() == {"lb1": "lb1"}
    assert text.foreign == []


def test_env_names_differ_where_monit_folds_case(node):
    names = [publish.service_prefix(n) for n in ("lb1", "LB1", "Lb1", "lb_1")]
    assert len({n.lower() for n in names}) == 4


def test_address_change_in_the_inventory_wins_over_an_old_hook(node):
    snapshot = {"ip4_addr": "10.0.0.1/24", "ipv4_first": "10.0.0.1"}
    found = publish.facts_of(node, "lb1", {"ip4_addr": "10.0.0.9/24"}, snapshot)
    assert found["ADDRESS"] == "10.0.0.9"


def test_ipv6_only(node):
    found = facts(node, ip4_addr="fde4::1/64")
    assert publish.fill('"%%ADDRESS%%"', found) == '"fde4::1"'
    with pytest.raises(EnvError, match="no address yet: ip4_addr is 'fde4::1/64'"):
        publish.fill("%%IPV4_FIRST%%", found)


@pytest.mark.parametrize("ip4_addr", ["DHCP", "REALDHCP", "0", ""])
def test_no_address_is_a_clear_message(node, ip4_addr):
    with pytest.raises(EnvError, match="no address yet"):
        publish.EnvText(node, "lb1", UPSTREAM, facts(node, ip4_addr=ip4_addr), trusted=True)


@pytest.mark.parametrize("value", ['a"b', "a b", "a\nb", "a'b", "a;b", "a{b", "ü", "a#b", "a\\b"])
def test_fact_that_monit_could_misread_is_refused(node, value):
    with pytest.raises(EnvError, match="%%HOST_HOSTNAME%%"):
        publish.fill("%%HOST_HOSTNAME%%", facts(node, host_hostname=value))


def test_unknown_fact_is_named(node):
    with pytest.raises(EnvError, match="%%NOSUCH%%"):
        publish.fill("%%NOSUCH%%", facts(node))


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("set daemon 1\n", "change the whole node"),
        (
            'check file x path /x\n  if changed checksum then alert\nINCLUDE "/etc/x"\n',
            "change the whole node",
        ),
        ('check host "all" address 1.1.1.1\n  if failed port 1 then alert\n', "must not be called"),
        (
            'check host x address 1.1.1.1\n  if failed port 1 send "x then alert\n',
            "unbalanced quotes",
        ),
        ("check host x address 1.1.1.1\x07\n", "control characters"),
    ],
)
def test_text_that_reaches_beyond_its_env_is_refused(node, template, words):
    with pytest.raises(EnvError, match=words):
        publish.EnvText(node, "lb1", template, facts(node), trusted=True)


@pytest.mark.parametrize(
    "line",
    [
        'if failed port 1 then exec "/bin/evil"',
        'if failed port 1 then exec "/usr/local/bin/cbsd jrestart other"',
        'start program = "/bin/evil"',
        'stop program "/bin/evil"',
        "if failed port 1 then exec /bin/evil",
    ],
)
def test_foreign_programs_need_pillar_or_root(node, line):
    template = f"check host lb1 with address 1.1.1.1\n  {line}\n"
    with pytest.raises(EnvError, match="as root"):
        publish.EnvText(node, "lb1", template, facts(node), trusted=False)
    assert len(publish.EnvText(node, "lb1", template, facts(node), trusted=True).foreign) == 1


def test_check_program_is_a_program(node):
    template = (
        'check program lb1 with path "/bin/evil a" timeout 5 seconds\n  if status != 0 then alert\n'
    )
    with pytest.raises(EnvError, match="/bin/evil a"):
        publish.EnvText(node, "lb1", template, facts(node), trusted=False)
    probe = f'check program lb1 with path "{node.wake} probe lb1 x"\n  if status != 0 then alert\n'
    assert publish.EnvText(node, "lb1", probe, facts(node), trusted=False).foreign == []


class FakeMonit:
    """Counts the parses and refuses texts that hold a bad word."""

    def __init__(self, bad):
        self.bad, self.parses = bad, 0

    def test(self, path):
        self.parses += 1
        stage = [line.split()[1] for line in open(path) if line.startswith("include")][-1]
        for number, line in enumerate(open(stage), 1):
            if any(word in line for word in self.bad):
                return f"{stage}:{number}: syntax error 'x'"
        return ""


def texts(node, count, bad=()):
    found = []
    for i in range(count):
        word = "bad" if i in bad else "good"
        template = (
            f'check host "%%ENV%%.tcp" with address "%%ADDRESS%%"\n  if failed port 1 then {word}\n'
        )
        found.append(publish.EnvText(node, f"e{i}", template, facts(node, f"e{i}"), trusted=True))
    return found


@pytest.mark.parametrize("bad", [(), (0,), (99,), (50,), (3, 4), (0, 50, 99)])
def test_the_envs_that_do_not_parse_are_found_without_parsing_each(node, bad):
    fake = FakeMonit(["then bad"])
    publisher = publish.Publisher(node, fake)
    good, refused = publisher.accept(texts(node, 100, bad))
    assert sorted(refused) == sorted(f"e{i}" for i in bad)
    assert len(good) == 100 - len(bad)
    assert fake.parses <= 2 + 12 * len(bad)


def test_one_bad_env_costs_one_parse_more(node):
    fake = FakeMonit(["then bad"])
    publish.Publisher(node, fake).accept(texts(node, 100, (50,)))
    assert fake.parses == 2


def test_duplicate_service_names_are_found_before_monit_sees_them(node):
    pair = [
        publish.EnvText(
            node,
            n,
            'check host "Web" with address "%%ADDRESS%%"\n  if failed port 1 then alert\n',
            facts(node, n),
            True,
        )
        for n in ("a", "b")
    ]
    good, refused = publish.Publisher(node, FakeMonit([])).accept(pair)
    assert [t.env for t in good] == ["a"]
    assert refused == {"b": "service name already used by a"}


def test_real_monit_names_the_culprit_and_not_its_neighbour(node, conf):
    template = (
        'check host "%%ENV%%.tcp" with address "%%ADDRESS%%"\n  if failed port 1 then alert\n'
    )
    unfinished = 'check host "%%ENV%%.tcp" with address "%%ADDRESS%%"\n  if failed port 1 then\n'
    all_texts = [
        publish.EnvText(
            node, f"e{i}", unfinished if i == 2 else template, facts(node, f"e{i}"), True
        )
        for i in range(5)
    ]
    good, refused = publish.Publisher(node, monit.Monit(node)).accept(all_texts)
    assert list(refused) == ["e2"]
    assert len(good) == 4


def test_generations_swap_and_only_five_are_kept(node):
    publisher = publish.Publisher(node, FakeMonit([]))
    for count in range(1, 9):
        publisher.swap(texts(node, count))
    assert publisher.generation() == 8
    import os

    assert sorted(os.listdir(node.in_state("generations")), key=int) == ["4", "5", "6", "7", "8"]
    assert publisher.current().count("check host") == 8
    assert publisher.older() == 7


@pytest.mark.parametrize(
    "line",
    [
        'if failed port 1 then execute "/bin/x"',
        'start "/bin/x"',
        'start = "/bin/x"',
        'startprogram "/bin/x"',
        'start program="/bin/x"',
        'restart "/bin/x"',
        'if failed port 1 then(exec "/bin/x")',
        'if failed port 1 then;exec "/bin/x"',
        "if failed port 1 then exec '/bin/x'",
        'if failed host a#b port 1 then exec "/bin/x"',
    ],
)
def test_every_way_that_monit_knows_to_run_something_is_seen(node, line):
    template = f"check host lb1 with address 1.1.1.1\n  {line}\n"
    with pytest.raises(EnvError, match="as root|it says"):
        publish.EnvText(node, "lb1", template, facts(node), trusted=False)
    assert publish.EnvText(node, "lb1", template, facts(node), trusted=True).foreign == ["/bin/x"]


def test_what_follows_a_hash_inside_a_word_is_no_comment(node):
    template = (
        "check host lb1#x with address 1.1.1.1\n  if failed port 1 then alert set daemon 77\n"
    )
    with pytest.raises(EnvError, match="change the whole node"):
        publish.EnvText(node, "lb1", template, facts(node), trusted=True)


@pytest.mark.parametrize(
    "template",
    [
        UPSTREAM,
        'check host "%%ENV%%.web" with address "%%ADDRESS%%"\n  onreboot laststate\n  depends on "%%ENV%%.env"\n  every 3 cycles\n'
        '  if failed port 443 protocol https request "/x" status = 200 content = "a b" and certificate valid > 30 days\n'
        '    with timeout 5 seconds for 3 times within 5 cycles then exec "%%WAKE%% monit %%ENV%%.web" repeat every 3 cycles\n'
        "    else if succeeded for 2 cycles then alert\n  if failed ping4 count 3 with timeout 2 seconds then alert\n",
        'check file "%%ENV%%.env" with path "%%DEAD%%"\n  if exist then exec "%%WAKE%% monit %%ENV%%.env" repeat every 5 cycles\n',
        'check program "%%ENV%%.app" with path "%%WAKE%% probe %%JNAME%% app" with timeout 9 seconds\n  if status != 0 for 2 cycles then alert\n',
    ],
)
def test_what_we_render_and_what_upstream_wrote_is_harmless_anywhere(node, template):
    assert publish.EnvText(node, "lb1", template, facts(node), trusted=False).foreign == []


def test_name_that_two_envs_claim_stays_with_pillars_then_with_who_has_it(node):
    def text(env, rank):
        return publish.EnvText(
            node,
            env,
            'check host "w-web" with address 1.1.1.1\n  if failed port 1 then alert\n',
            facts(node, env),
            True,
            rank=rank,
        )

    pair = [text("a", (True, True, False)), text("z", (True, False, True))]
    good, refused = publish.Publisher(node, FakeMonit([])).accept(pair)
    assert ([t.env for t in good], refused) == (["z"], {"a": "service name already used by z"})


def one(node, env, lines, rank=()):
    return publish.EnvText(
        node,
        env,
        f'check file "%%ENV%%.a" with path "%%DEAD%%"\n  {lines}\n',
        facts(node, env),
        True,
        rank=rank,
    )


GOOD = "if exist then alert"
# What monit says of it has a line, the next env's line, no line at all, or warnings before it.
CULPRITS = {
    "syntax": "if exits then alert",
    "unfinished": "if exist then",
    "missing program": 'if exist then alert\ncheck program "%%ENV%%.p" with path "/nope/x"\n  if status != 0 then alert',
    "unknown parent": 'if exist then alert\n  depends on "nobody"',
    "loop": 'if exist then alert\n  depends on "%%ENV%%.a"',
    "unknown user": 'if exist then exec "/bin/true" as uid nosuchuser',
}


@pytest.mark.parametrize("at", [0, 7, 15])
@pytest.mark.parametrize("kind", CULPRITS)
def test_real_monit_s_culprit_is_named_whatever_it_says(node, kind, at):
    found = [one(node, f"e{i:02d}", CULPRITS[kind] if i == at else GOOD) for i in range(16)]
    publisher = publish.Publisher(node, monit.Monit(node))
    good, refused = publisher.accept(found)
    assert list(refused) == [f"e{at:02d}"] and len(good) == 15
    assert publisher.parses <= 9, publisher.parses
    assert "conf.json" not in refused[f"e{at:02d}"] and ".stage" not in refused[f"e{at:02d}"]


@pytest.mark.parametrize(
    "bad", [{2: "syntax", 3: "unfinished"}, {0: "loop", 9: "unknown parent", 15: "missing program"}]
)
def test_several_culprits_of_several_kinds(node, bad):
    found = [one(node, f"e{i:02d}", CULPRITS[bad[i]] if i in bad else GOOD) for i in range(16)]
    good, refused = publish.Publisher(node, monit.Monit(node)).accept(found)
    assert sorted(refused) == [f"e{i:02d}" for i in sorted(bad)] and len(good) == 16 - len(bad)


def test_template_that_all_share_and_monit_refuses(node):
    found = [one(node, f"e{i:02d}", GOOD if i == 20 else CULPRITS["syntax"]) for i in range(40)]
    publisher = publish.Publisher(node, monit.Monit(node))
    good, refused = publisher.accept(found)
    assert [t.env for t in good] == ["e20"] and len(refused) == 39
    assert publisher.parses <= 40 + 8 * 8


def test_env_that_was_refused_before_costs_one_trial_and_comes_back(node):
    fake = FakeMonit(["then bad"])
    publisher = publish.Publisher(node, fake)
    good, refused = publisher.accept(texts(node, 100, (50,)), {"e50"})
    assert list(refused) == ["e50"] and len(good) == 99 and fake.parses == 2
    good, refused = publisher.accept(texts(node, 100), {"e50"})
    assert not refused and len(good) == 100


def test_operators_own_broken_control_file_is_nobody_s_fault(node, conf):
    with open(conf["monitrc"], "a") as handle:
        handle.write("set daemn 1\n")
    with pytest.raises(publish.AgentError, match="the node's own control file.*daemn"):
        publish.Publisher(node, monit.Monit(node)).accept([one(node, "a", GOOD)])


@pytest.mark.parametrize("cron", [",,, * * * *", "99", "* * * * *,", "*/5 * * * *", "a b c d e"])
def test_time_that_ends_a_running_monit_is_refused(node, cron):
    with pytest.raises(EnvError, match="no time that every version of monit survives"):
        one(node, "a", f'every "{cron}"\n  {GOOD}')
    assert one(node, "a", f'every "0-30,45 8 * * 1-5"\n  {GOOD}').text


def test_line_that_would_begin_another_env_s_part_is_refused(node):
    with pytest.raises(EnvError, match="parts one env from the next"):
        one(node, "a", f"{GOOD}\n{publish.MARK}b\ncheck file b path /x")


# What is said of a template without its facts must be what would be said of each text.


@pytest.mark.parametrize(
    "template",
    [
        UPSTREAM,
        'check host "%%ENV%%.web" with address "%%ADDRESS%%"\n  if failed port 80 then exec "%%WAKE%% monit %%ENV%%.web"\n',
        'check program "%%ENV%%.p" with path "%%WAKE%% probe %%JNAME%% p"\n  if status != 0 then alert\n',
        'check program "%%ENV%%.p" with path "%%WAKE%% probe %%JNAME%%x p"\n  if status != 0 then alert\n',
        'check host %%HOST_HOSTNAME%% with address "%%ADDRESS%%"\n  if failed port 80 then alert\n',
        'check host "%%HOST_HOSTNAME%%" with address "%%ADDRESS%%"\n  if failed port 80 then alert\n',
        'check file "%%ENV%%.a" with path "%%DEAD%%"\n  if exist then %%HOST_HOSTNAME%%\n',
        'check file "%%ENV%%.a" with path "%%DEAD%%"\n  if exist then exec "%%WAKE%% monit %%ENV%%.a" # %%JNAME%%\n',
        "check file '%%ENV%%.a' with path \"%%DEAD%%\"\n  if exist then alert\n",
    ],
)
@pytest.mark.parametrize("hostname", ["web", "all", "set", "include", "exec", "node-x", "alert"])
@pytest.mark.parametrize("trusted", [True, False])
def test_one_look_at_a_template_says_what_a_look_at_each_text_would(
    node, monkeypatch, template, hostname, trusted
):
    def outcome():
        publish.Template.cache_clear()
        try:
            text = publish.EnvText(
                node, "lb1", template, facts(node, host_hostname=hostname), trusted
            )
            return text.text, text.names, text.foreign
        except EnvError as err:
            return str(err)

    quick = outcome()
    plain = publish.Template.__wrapped__.__init__

    def never(self, text):
        plain(self, text)
        self.plain, self.names = False, []

    monkeypatch.setattr(publish.Template.__wrapped__, "__init__", never)
    assert outcome() == quick


def test_sweep_counts_what_monit_does_one_after_the_other():
    text = """
check host "a.http" with address "1.1.1.1"
  every 4 cycles
  if failed port 80 with timeout 5 seconds and retry 2 for 3 cycles
    then exec "/x" repeat every 3 cycles
    else if succeeded for 2 cycles then exec "/x"
  if failed ping count 2 with timeout 3 seconds then alert
check program "a.p" with path "/bin/true" with timeout 90 seconds
  if status != 0 then alert
check host "a.ssh" with address "1.1.1.1"
  every 2 cycles
  if failed port 22 then alert
"""
    assert publish.sweep(text, 10) == (10 + 6 + 5, 20)


def test_worst_sweep_longer_than_the_interval_is_said_with_its_numbers(node):
    rule = 'check host "%%ENV%%.x" with address "%%ADDRESS%%"\n  every 6 cycles\n  if failed port 1 with timeout 4 seconds then alert\n'
    found = [publish.EnvText(node, f"e{i}", rule, facts(node, f"e{i}"), True) for i in range(8)]
    publisher = publish.Publisher(node, None)
    assert publisher.limits(found[:7]) == []
    assert (
        "need 32 s" in publisher.limits(found)[0]
        and "interval is 30 s" in publisher.limits(found)[0]
    )


def test_what_a_killed_writer_left_is_removed_once_it_is_old(node, world):
    import os
    import time

    import passes

    monit_dir = world.env("a")
    left = [
        monit_dir / f".monitrc.{'0a' * 6}.new",
        pathlib.Path(node.in_state("envs")) / f".a.json.{'0b' * 6}.new",
    ]
    young, alien = monit_dir / f".monitrc.{'0c' * 6}.new", monit_dir / ".mine.new"
    for path in (*left, young, alien):
        path.write_text("half")
    for path in (*left, alien):
        os.utime(path, (time.time() - 700, time.time() - 700))
    passes.run(node)
    assert [p.exists() for p in (*left, young, alien)] == [False, False, True, True]


class Asked:
    """A monit on a unix socket that keeps what it is asked, and refuses what ``refused`` is in."""

    def __init__(self, path, refused=None):
        self.bodies, self.refused = [], refused
        self.server = socket.socket(socket.AF_UNIX)
        self.server.bind(str(path))
        self.server.listen(8)
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        while True:
            with contextlib.suppress(OSError), self.server.accept()[0] as one:
                text = one.recv(1 << 20).decode()
                self.bodies.append((text.split(" ")[1], text.partition("\r\n\r\n")[2]))
                bad = self.refused and self.refused in text
                one.sendall(b"HTTP/1.0 404 no\r\n\r\n" if bad else b"HTTP/1.0 200 OK\r\n\r\n")


@pytest.mark.parametrize("refused", [None, "e7."])
def test_many_services_are_asked_for_in_few_requests(node, tmp_path, refused):
    """A thousand requests would wake monit a thousand times; one name that it no longer knows spoils a request."""
    node.conf["socket"], node.conf["monitrc"] = str(tmp_path / "m.sock"), str(tmp_path / "none")
    there = Asked(tmp_path / "m.sock", "service=e7%" if refused else None)
    monit.Monit(node).act([*(f"e{n}.http" for n in range(450)), "=x.a", "odd name"], "unmonitor")
    together = [body for page, body in there.bodies if page == "/_doaction"]
    alone = [page for page, _ in there.bodies if page != "/_doaction"]
    assert len(together) == 3 and all("action=unmonitor" in body for body in together)
    assert "service=e7%5C.http" in together[0] and "service=%3Dx%5C.a" in together[2]
    assert len(alone) == (201 if refused else 1), (
        "the odd one, and those of the refused request one by one"
    )


def test_monit_is_asked_for_nothing_else(node):
    with pytest.raises(AssertionError):
        monit.Monit(node).act(["a"], "quit")


def test_only_what_monit_took_as_it_is_now_counts_as_tested(node, conf):
    node.conf["include"] = "publish"
    publisher = publish.Publisher(node, monit.Monit(node))
    good, _ = publisher.accept([one(node, "a", GOOD)])
    assert not publisher.tested(), "it is not published yet"
    publisher.swap(good)
    assert publisher.tested()
    with open(conf["monitrc"], "a") as handle:
        handle.write("# an operator's change\n")
    assert not publisher.tested()
    publisher.accept([one(node, "a", GOOD), one(node, "b", CULPRITS["syntax"])])
    assert publisher.tested(), "the culprit's trials do not count, that without it does"
    publisher.accept([one(node, "b", GOOD)])
    assert not publisher.tested()
    publisher.swap([one(node, "b", GOOD)])
    assert publisher.tested()
    publisher.glob = True  # then monit reads other files than those on trial
    assert not publisher.tested()


@pytest.mark.parametrize(("name", "tested"), [("monit", True), ("monit", False), ("sleep", True)])
def test_signal_goes_to_monit_alone_and_only_when_its_text_was_tested(
    node, conf, tmp_path, name, tested
):
    program = shutil.copy(shutil.which("sleep"), tmp_path / name)
    calls = tmp_path / "calls"
    node.conf["monit"] = str(tmp_path / "cli")
    (tmp_path / "cli").write_text(f'#!/bin/sh\necho "$@" >> {calls}\n')
    (tmp_path / "cli").chmod(0o755)
    with subprocess.Popen([program, "60"]) as process:
        try:
            with open(conf["monitrc"], "a") as handle:
                handle.write(f"set pidfile {tmp_path}/pid\n")
            (tmp_path / "pid").write_text(f"{process.pid}\n")
            monit.Monit(node).reload(tested)
            if name == "monit" and tested:
                assert process.wait(timeout=10) == -signal.SIGHUP
                assert not calls.exists()
            else:
                assert calls.read_text() == f"-c {conf['monitrc']} reload\n"
                assert process.poll() is None
        finally:
            process.kill()
