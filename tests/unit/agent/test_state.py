"""How hooks change what is known of an env: every cause of a stop, and the order of a life."""

import os

import pytest
import state

CBSD = "/usr/local/bin/cbsd"


def record(hook, ancestors=(), **environ):
    head = "\n".join([f"1 {hook} lb1", *ancestors])
    body = "\0".join(f"{k}={v}" for k, v in {"jname": "lb1", "emulator": "jail", **environ}.items())
    return state.HookRecord(f"{head}\n\n{body}\0".encode())


def life(node, *records):
    env = state.Env(node, "lb1")
    for item in records:
        state.apply(env, item)
    return env


@pytest.mark.parametrize(
    ("ancestors", "environ", "cause", "intent"),
    [
        (
            ["10 9 /bin/sh /x", f"9 8 {CBSD} /usr/local/cbsd/sudoexec/jstop jname=lb1", "8 1 -sh"],
            {},
            "operator",
            "stopped",
        ),
        ([f"9 8 {CBSD} sudoexec/jstop lb1", f"8 7 {CBSD} jrestart lb1"], {}, "restart", "running"),
        (
            [
                f"9 8 {CBSD} bstop inter=0 jname=lb1",
                f"8 7 {CBSD} /usr/local/cbsd/bhyvectl/brestart lb1",
            ],
            {},
            "restart",
            "running",
        ),
        (
            [f"9 8 {CBSD} jstop lb1", f"8 7 {CBSD} jrename old=lb1 new=lb2 restart=1"],
            {},
            "rename",
            "running",
        ),
        (
            [f"9 8 {CBSD} bstop jname=lb1", "8 7 /bin/sh /usr/local/cbsd/rc.d/jails-astart stop"],
            {},
            "shutdown",
            "running",
        ),
        (
            [f"9 8 {CBSD} bstop jname=lb1", "8 1 /bin/sh /etc/rc.shutdown"],
            {},
            "shutdown",
            "running",
        ),
        ([f"9 8 {CBSD} bstop cbsd_queue_name=none jname=lb1"], {}, "guest", "running"),
        (
            [f"9 8 {CBSD} bstop jname=lb1", "8 1 /bin/sh /usr/local/cbsd/share/bhyverun.sh -c x"],
            {},
            "guest",
            "running",
        ),
        ([f"9 8 {CBSD} jstop lb1"], {"CBSD_MONIT_CAUSE": "heal"}, "heal", "running"),
        ([f"9 8 {CBSD} jstop lb1"], {"CBSD_MONIT_CAUSE": "restart"}, "restart", "running"),
        ([f"9 8 {CBSD} jstop lb1"], {"CBSD_MONIT_CAUSE": "anything"}, "operator", "stopped"),
        ([], {}, "operator", "stopped"),
        ([f"9 8 {CBSD} jstop jname=jrestart-test"], {}, "operator", "stopped"),
        (
            [
                f"9 8 {CBSD} jstop lb1",
                f"8 7 sh -c {CBSD} jstop lb1; echo next time: {CBSD} jrestart lb1",
            ],
            {},
            "operator",
            "stopped",
        ),
        (
            [f"9 8 {CBSD} jstop lb1", "8 7 -sh", "7 6 vi /etc/rc.shutdown jails-astart"],
            {},
            "operator",
            "stopped",
        ),
        ([f"9 8 {CBSD} jstop lb1", f"8 7 {CBSD} jrestart other"], {}, "operator", "stopped"),
        ([f"9 8 {CBSD} jstop lb1", f"8 7 {CBSD} jrestart jname=lb*"], {}, "restart", "running"),
        (
            [
                "9 8 /usr/bin/python3.11 -IS /x/bin/cbsd jstop lb1",
                "8 7 /usr/bin/python3.11 -IS /x/bin/cbsd jrestart jname=lb1",
            ],
            {},
            "restart",
            "running",
        ),
    ],
)
def test_cause_of_a_stop(node, ancestors, environ, cause, intent):
    env = life(
        node,
        record("master_poststart.d", jid="7"),
        record("master_prestop.d", ancestors, **environ),
    )
    assert (env["cause"], env["intent"]) == (cause, intent)
    state.apply(env, record("master_poststop.d"))
    assert env["intent"] == intent


def test_typed_restart_waits_for_its_start(node):
    env = life(
        node,
        record("master_poststart.d", jid="7"),
        record("master_prestop.d", [f"8 7 {CBSD} jrestart lb1"]),
        record("master_poststop.d"),
    )
    assert env["phase"] == "restarting"
    state.apply(env, record("master_prestart.d"))
    state.apply(env, record("master_poststart.d", jid="8"))
    assert (env["phase"], env["intent"]) == (None, "running")


def test_failed_start_leaves_the_wish(node):
    env = life(
        node,
        record("master_prestart.d", jid="0"),
        record("master_poststart.d", jid="0"),
        record("master_poststop.d", jid="0"),
    )
    assert (env["phase"], env["intent"], env["started"]) == (None, "running", None)


def test_remove_of_a_running_env_is_a_remove(node):
    env = life(
        node,
        record("master_poststart.d", jid="7"),
        record("remove.d"),
        record("master_prestop.d", [f"9 8 {CBSD} jstop fast=1 lb1"]),
        record("master_poststop.d"),
    )
    assert (env["phase"], env["intent"]) == ("removing", "stopped")


def test_two_stops_at_once(node):
    env = life(
        node,
        record("master_poststart.d", jid="7"),
        *[record("master_prestop.d")] * 2,
        *[record("master_poststop.d")] * 2,
    )
    assert (env["phase"], env["intent"]) == (None, "stopped")


def test_attempts_are_forgotten_when_somebody_starts_it_but_not_when_we_do(node):
    env = state.Env(node, "lb1")
    env["attempts"], env["gave_up"] = [node.stamp()], True
    state.apply(env, record("master_poststart.d", jid="7", CBSD_MONIT_CAUSE="heal"))
    assert len(env["attempts"]) == 1
    state.apply(env, record("master_poststart.d", jid="8"))
    assert (env["attempts"], env["gave_up"]) == ([], False)


def test_facts_are_the_columns_not_the_shell(node):
    env = life(
        node,
        record(
            "master_poststart.d", jid="7", ipv4_first="10.0.0.1", PATH="/x", NOINTER="1", inter="0"
        ),
    )
    assert env["facts"]["ipv4_first"] == "10.0.0.1"
    assert not {"PATH", "NOINTER", "inter"} & set(env["facts"])


def test_unreadable_record_is_set_aside(node, capsys):
    with open(node.in_state("inbox", "1000000001.5"), "wb") as handle:
        handle.write(b"\xff\xfe")
    assert state.read_inbox(node) == []
    assert "unreadable hook record" in capsys.readouterr().err
    assert state.read_inbox(node) == []


def test_clock_jump_changes_no_age(node, monkeypatch):
    stamp = node.stamp()
    monkeypatch.setattr("time.time", lambda: stamp["t"] + 86400 * 365)
    assert node.age(stamp) < 5


def test_stamp_that_a_wrong_clock_put_into_the_future_holds_nothing_up(node):
    now = node.stamp()["t"]
    assert node.age({"t": now + 86400, "m": 0, "b": "another boot"}) == float("inf")
    assert node.age({"t": now + 2, "m": 0, "b": "another node's"}) == 0
    assert 59 < node.age({"t": now - 60, "m": 0, "b": "another boot"}) < 70


def test_our_own_start_changes_no_intent(node):
    env = life(
        node,
        record("master_poststart.d", jid="7"),
        record("master_prestop.d"),
        record("master_poststop.d"),
        record("master_poststart.d", jid="0", CBSD_MONIT_CAUSE="heal"),
    )
    assert env["intent"] == "stopped"


def test_record_that_a_full_disk_tore_still_says_which_hook_of_which_env(node):
    for number, hook in ((1, "master_poststart.d"), (2, "master_prestop.d")):
        open(node.in_state("inbox", f"100000000{number}.77:{hook}:lb1"), "wb").close()
    found = state.read_inbox(node)
    assert [(r.hook, r.env, r.torn) for _, r in found] == [
        ("master_poststart.d", "lb1", True),
        ("master_prestop.d", "lb1", True),
    ]
    env = life(node, *[r for _, r in found])
    assert env["intent"] == "stopped"


def test_record_that_cannot_be_saved_is_kept_in_mind_and_written_later(node, world, monkeypatch):
    world.env("lb1")
    env = state.Env(node, "lb1")
    env.save()
    import files

    real = files._put

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("files._put", full)
    env["attempts"] = [1, 2]
    env.save()
    again = state.Env(node, "lb1")
    assert again["attempts"] == [1, 2]
    monkeypatch.setattr("files._put", real)
    again.save()
    assert state.UNSAVED == {}
    assert state.Env(node, "lb1")["attempts"] == [1, 2]


def test_numbers_of_hook_records_never_fall_back(node):
    inbox = node.in_state("inbox")
    for name in ("1000000005.1:master_prestart.d:a", "1000000006.2:master_prestart.d:b"):
        open(f"{inbox}/{name}", "wb").close()
    state.drop_inbox([f"{inbox}/1000000006.2:master_prestart.d:b"])
    state.drop_inbox([f"{inbox}/1000000005.1:master_prestart.d:a"])
    assert os.listdir(inbox) == ["1000000006.done"]
