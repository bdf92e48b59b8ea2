"""Checks of all envs: what is written, what of others is kept; test mode says just that."""

import hashlib
import json
import os
import stat
import subprocess
import time

import pytest
from salt.exceptions import CommandExecutionError, SaltInvocationError


def test_checks_of_all_envs_are_written_in_one_pass(host):
    folders = [host.add(f"web{n}") for n in range(5)]
    host.rendered = {f"web{n}": f"  rule {n}" for n in range(4)}
    done = host.quartet("checks_present")
    assert (folders[0] / "monitrc.tpl").read_text() == "check host web0\n  rule 0\n"
    assert json.loads((folders[0] / "policy.json").read_text())["env"] == "web0"
    assert not folders[4].exists()
    assert stat.S_IMODE(folders[0].stat().st_mode) == 0o700
    assert {stat.S_IMODE(p.stat().st_mode) for p in folders[0].iterdir()} == {0o600}
    assert list(done["changes"]["envs"]) == ["web0", "web1", "web2", "web3"]
    assert done["sub_state_run"][0]["changes"]["monitrc.tpl"] == {"diff": "New file"}
    keys = "name changes result comment duration start_time low"
    assert set(done["sub_state_run"][0]) == set(keys.split())
    assert sum(argv[:3] == ["wake", "sync", "--json"] for argv in host.ran) == 4  # one a run
    assert len(host.ran) == 6  # and monit -V, until a run has written down which monit that was


def test_only_what_changed_is_written_and_reported(host):
    folders = {env: host.add(env) for env in ("web1", "web2")}
    host.rendered = {"web1": "  a", "web2": "  b"}
    host.apply("checks_present")
    before = folders["web1"].joinpath("monitrc.tpl").stat().st_mtime_ns
    host.rendered["web2"] = "  c"
    done = host.quartet("checks_present")
    assert list(done["changes"]["envs"]) == ["web2"]
    assert folders["web1"].joinpath("monitrc.tpl").stat().st_mtime_ns == before


def test_agents_configuration_has_the_paths_of_the_node(host):
    host.apply("checks_present")
    config = host.root / "etc/cbsd_monit.json"
    said = json.loads(config.read_text())
    assert said["schema"] == 1 and said["head"] == host.head
    assert said["workdir"] == str(host.workdir)
    assert said["monit_start"] == host.lookup["monit_start"]
    assert stat.S_IMODE(config.stat().st_mode) == 0o600


def test_the_dry_run_knows_what_would_be_there(host):
    for env in ("new", "gone", "same"):
        host.add(env)
    host.rendered = {"gone": "  x", "same": "  y"}
    host.apply("checks_present")
    host.rendered = {"new": "  z", "same": "  y"}
    host.head = "set daemon 20\n"
    host.apply("checks_present", test=True)
    assert set(host.overlay) == {"new", "gone", ""}
    assert host.overlay["gone"] is None
    assert host.overlay["new"]["monitrc.tpl"] == "check host new\n  z\n"
    assert host.overlay["new"]["policy.json"]["origin"] == "pillar"
    assert host.overlay[""]["config"]["head"] == host.head


def test_without_an_agent_test_mode_says_that_it_would_publish(host):
    host.add("web1")
    host.rendered = {"web1": "  a"}
    (host.root / "libexec/wake").unlink()
    (host.root / "etc/cbsd_monit.json").unlink()
    said = host.apply("checks_present", test=True)
    assert said["result"] is None and said["changes"]["monit"] == "would be published and reloaded"
    done = host.apply("checks_present")
    assert done["result"] is False and "apply cbsd_monit.agent first" in done["comment"]


def test_what_pillar_no_longer_names_goes_and_history_stays(host):
    folder = host.add("web1")
    host.rendered = {"web1": "  a"}
    host.apply("checks_present")
    (folder / "history.jsonl").write_text("{}\n")
    host.rendered = {}
    host.quartet("checks_present")
    assert [p.name for p in folder.iterdir()] == ["history.jsonl"]


def test_template_of_the_operator_is_kept_and_comes_back(host):
    folder = host.add("web1")
    folder.mkdir(0o755)
    (folder / "monitrc.tpl").write_text("by hand\n")
    (folder / "policy.json").write_text('{"origin": "local"}')
    (folder / "monitrc.tpl").chmod(0o644)
    before = host.content()
    adopted = host.apply("checks_present")
    assert "as their operator wrote them: web1" in adopted["comment"]
    assert "envs" not in adopted["changes"]
    host.rendered = {"web1": "  a"}
    done = host.quartet("checks_present")
    assert "kept as monitrc.tpl.local" in done["changes"]["envs"]["web1"]
    assert (folder / "monitrc.tpl.local").read_text() == "by hand\n"
    host.rendered = {}
    done = host.quartet("checks_present")
    assert "put back" in done["changes"]["envs"]["web1"]
    after = host.content()
    before, after = ({k: v for k, v in d.items() if "jails" in k} for d in (before, after))
    assert after == before


@pytest.mark.parametrize("steps", range(1, 8))
@pytest.mark.parametrize("way", ["place", "take back"])
def test_template_of_the_operator_survives_a_crash_at_any_step(host, monkeypatch, steps, way):
    folder = host.add("web1")
    folder.mkdir(0o700)
    (folder / "monitrc.tpl").write_text("by hand\n")
    (folder / "policy.json").write_text('{"origin": "local"}')
    if way == "take back":
        host.rendered = {"web1": "  a"}
        host.apply("checks_present")
    host.rendered = {"web1": "  a"} if way == "place" else {}
    left = [steps]

    class Crash(BaseException):
        pass

    def guarded(function):
        def call(*args, **kwargs):
            if kwargs.get("dir_fd", kwargs.get("src_dir_fd")) is not None:
                left[0] -= 1
                if left[0] < 0:
                    raise Crash
            return function(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        for name in ("rename", "unlink", "replace"):
            patch.setattr(os, name, guarded(getattr(os, name)))
        try:
            host.apply("checks_present")
        except Crash:
            pass
    assert host.apply("checks_present")["result"] is True
    host.rendered = {}
    host.apply("checks_present")
    assert (folder / "monitrc.tpl").read_text() == "by hand\n"
    assert (folder / "policy.json").read_text() == '{"origin": "local"}'
    shown = sorted(p.name for p in folder.iterdir() if not p.name.startswith("."))
    assert shown == ["monitrc.tpl", "policy.json"]


def test_copied_directory_is_neither_removed_nor_taken_for_the_operators(host):
    host.add("web1")
    host.rendered = {"web1": "  a"}
    host.apply("checks_present")
    copy = host.add("web2")
    source = str(host.workdir / "jails-system/web1/monit")
    subprocess.run(["cp", "-a", source, str(copy)], check=True)
    done = host.apply("checks_present")
    assert done["changes"] == {} and "web2" in done["comment"]
    host.rendered["web2"] = "  b"
    host.quartet("checks_present")
    assert not (copy / "monitrc.tpl.local").exists()


def test_planted_symlinks_are_not_followed(host, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "victim").write_text("mine\n")
    web1, web2, web3 = host.add("web1"), host.add("web2"), host.add("web3")
    web1.symlink_to(outside)
    web2.mkdir()
    (web2 / "monitrc.tpl").symlink_to(outside / "victim")
    os.mkfifo(web2 / "policy.json")
    host.rendered = {"web1": "  a", "web2": "  b", "web3": "  c"}
    done = host.apply("checks_present")
    assert done["result"] is False
    assert "web1: " in done["comment"]
    assert "symlink is not followed" in done["comment"]
    assert sorted(p.name for p in outside.iterdir()) == ["victim"]
    assert (outside / "victim").read_text() == "mine\n"
    for folder in (web2, web3):
        assert (folder / "monitrc.tpl").is_file() and not (folder / "monitrc.tpl").is_symlink()
    results = {s["name"]: s["result"] for s in done["sub_state_run"]}
    assert results == {"web1": False, "web2": True, "web3": True}


def test_directory_of_a_vm_may_be_a_symlink(host):
    real = host.workdir / "vm/vm1"
    real.mkdir(parents=True)
    (host.workdir / "jails-system/vm1").symlink_to(real)
    host.envs["vm1"] = {"emulator": "bhyve", "status": "off"}
    host.rendered = {"vm1": "  a"}
    host.quartet("checks_present")
    assert (real / "monit/monitrc.tpl").exists()


def test_quarantine_and_errors_fail_the_state_with_their_reasons(host):
    host.add("web1"), host.add("web2")
    host.rendered = {"web1": "  a", "web2": "  b"}
    why = {"web1": "monit says: monitrc.tpl:7: syntax error 'faild'"}
    host.answer.update(changed=["web2"], reloaded=True, quarantined=why)
    done = host.apply("checks_present")
    assert done["result"] is False
    words = "web1: quarantined: monit says: monitrc.tpl:7: syntax error 'faild'"
    assert words in done["comment"]
    assert done["changes"]["monit"] == {"published": ["web2"]}
    assert {s["name"]: s["result"] for s in done["sub_state_run"]} == {"web1": False, "web2": True}


def test_what_an_operator_rolled_back_is_told_once_and_is_no_failure(host):
    for env in ("web1", "web2", "web3"):
        host.add(env)
        host.rendered[env] = "  a"
    why = "rolled back to generation 3: web1 has no checks in it"
    host.answer["quarantined"] = {"web1": why, "web2": why.replace("web1", "web2")}
    held = {"generation": 3, "why": "rolled back by root"}
    host.answer["held"] = held
    done = host.apply("checks_present")
    assert done["result"] is True, done
    told = "Note: generation 3 is published and kept: rolled back by root (web1, web2)."
    assert done["comment"].endswith(told) and done["comment"].count("rolled back") == 1
    host.answer["held"] = None
    done = host.apply("checks_present")
    assert done["result"] is True and f"Note: web1: {why}; web2: rolled" in done["comment"]

    host.answer["held"] = held
    host.answer["quarantined"]["web3"] = "monit says: it was rolled back"
    done = host.apply("checks_present")
    assert done["result"] is False
    assert "others are: web3: quarantined: monit says: it was rolled back." in done["comment"]


@pytest.mark.parametrize("answer", [
    {"errors": {"(monit)": "monit's last round ended 900 s ago"}},
    {"error": "monit's last round ended 900 s ago"},
])  # fmt: skip
@pytest.mark.parametrize("test", [False, True])
def test_a_monit_that_stands_still_fails_the_state(host, answer, test):
    host.add("web1")
    host.rendered = {"web1": "  a"}
    assert host.apply("checks_present")["result"] is True
    host.answer.update(answer)
    done = host.apply("checks_present", test=test)
    assert done["result"] is False and "monit's last round ended 900 s ago" in done["comment"]


def test_an_env_that_the_agent_does_not_see_is_not_live(host):
    for env in ("web1", "web2"):
        host.add(env)
        host.rendered[env] = "  a"
    host.answer["envs"] = {"web2": "healthy"}
    done = host.apply("checks_present")
    assert done["result"] is False
    assert "web1: the agent does not see it in CBSD's inventory" in done["comment"]
    assert {s["name"]: s["result"] for s in done["sub_state_run"]} == {"web1": False, "web2": True}


def test_commands_of_the_operators_own_are_reported(host):
    host.answer["foreign"] = {"web1": ["/usr/local/bin/page-me"]}
    done = host.apply("checks_present")
    assert "Commands of their own that monit runs: web1: /usr/local/bin/page-me" in done["comment"]


@pytest.mark.parametrize("error, bug", [
    (SaltInvocationError("envs.lb1: unknown key 'chekcs'"), False),
    (CommandExecutionError("no CBSD"), False),
    (OSError("no"), False),
    (KeyError("x"), True),
    (ValueError("x"), True),
])  # fmt: skip
def test_a_state_reports_and_never_raises_and_calls_a_bug_a_bug(host, error, bug, caplog):
    def fail(*_args, **_kwargs):
        raise error

    host.opts["log_file"] = "/var/log/salt/minion"

    def check(state):
        caplog.clear()
        done = host.apply(state)
        assert done["result"] is False and str(error) in done["comment"], done
        traced = [r for r in caplog.records if r.levelname == "ERROR" and r.exc_info]
        assert ("A bug in cbsd_monit, not in your pillar" in done["comment"]) is bug
        assert ("its traceback, which is in /var/log/salt/minion" in done["comment"]) is bug
        assert bool(traced) is bug and all(r.exc_info[1] is error for r in traced)

    for function in ("cbsd_monit.render", "cbsd.list", "cbsd_monit_node.paths"):
        host.salt[function] = fail
        before = host.tree()
        check("checks_present")
        assert host.tree() == before
    present = ["include_present", "hooks_present"]
    for state in ["checks_absent", *present, "include_absent", "hooks_absent", "running"]:
        check(state)


def test_agent_that_answers_rubbish_is_quoted(host):
    (host.root / "monit").unlink()
    nothing = {"config": {}, "envs": {}, "warnings": []}
    host.salt["cbsd_monit.render"] = lambda *_, monit_version, **__: nothing
    failure = {"retcode": 1, "stdout": "", "stderr": "cbsd_monit: no Python"}
    host.salt["cmd.run_all"] = lambda argv, **_: failure
    done = host.apply("checks_present")
    assert done["result"] is False and "no Python" in done["comment"]


def test_clean_takes_everything_and_no_more(host):
    host.state.mkdir(0o700)
    pillars, own, bare = host.add("web1"), host.add("web2"), host.add("web3")
    own.mkdir(0o755)
    (own / "monitrc.tpl").write_text("by hand\n")
    before = host.content()
    host.rendered = {"web1": "  a", "web2": "  b"}
    host.apply("checks_present")
    (host.state / "envs").mkdir()
    for env, folder in (("web1", pillars), ("web2", own)):
        (folder / "monitrc").write_text("rendered\n")
        (folder / "history.jsonl").write_text("{}\n")
        (host.state / "envs" / f"{env}.json").write_text("{}")
    host.quartet("checks_absent")
    assert not bare.exists()
    after = host.content()
    made = {"state/envs", "state/envs/web1.json", "state/envs/web2.json"}
    assert set(after) - set(before) == made
    for tree in (before, after):
        del tree["etc/cbsd_monit.json"]  # file.absent's business
    assert {k: v for k, v in after.items() if k not in made} == before


def test_thousand_envs_cost_as_many_processes_as_one(host):
    for n in range(1000):
        host.add(f"e{n}")
    host.rendered = {f"e{n}": "  a" for n in range(1000)}
    host.apply("checks_present")
    host.ran.clear()
    assert host.apply("checks_present")["changes"] == {}
    assert [argv[0] for argv in host.ran] == ["wake"]


def rendered_again(host, action=lambda: None):
    """Whether the state renders anew after ``action``, and what it changes then."""
    calls, render = [], host.salt["cbsd_monit.render"]

    def counted(*args, **kwargs):
        calls.append(args)
        return render(*args, **kwargs)

    counted.__code__ = counted.__code__.replace(co_filename=render.__code__.co_filename)
    host.salt["cbsd_monit.render"] = counted
    try:
        action()
        changes = host.apply("checks_present")["changes"]
    finally:
        host.salt["cbsd_monit.render"] = render
    return bool(calls), changes


def test_what_the_same_inputs_rendered_is_believed_only_if_it_lies_where_it_was_written(host):
    folder = host.add("web1")
    host.rendered = {"web1": "  a"}
    host.apply("checks_present")
    assert rendered_again(host) == (False, {})

    for path, mode, text in (
        (folder / "monitrc.tpl", 0o600, "by hand\n"),
        (folder / "policy.json", 0o600, "{}\n"),
        (host.root / "etc/cbsd_monit.json", 0o600, "{}\n"),
        (host.root / "etc/cbsd_monit.json", 0o644, None),
        (host.state / "trust.json", 0o600, "{}\n"),
        (host.state / "rendered.json", 0o600, "{"),
    ):
        good = path.read_text()

        def edit(path=path, text=text or good, mode=mode):
            path.write_text(text)
            path.chmod(mode)

        again, changes = rendered_again(host, edit)
        mode_is = stat.S_IMODE(path.stat().st_mode)
        assert again and path.read_text() == good and mode_is == 0o600, path
        assert bool(changes) == (path.name != "rendered.json"), path
        assert rendered_again(host) == (False, {})

    assert rendered_again(host, lambda: folder.chmod(0o755))[0]
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    changes = rendered_again(host, lambda: host.rendered.update(web1="  b"))[1]
    assert changes["envs"] == {"web1": "checks are written"}
    assert rendered_again(host, lambda: host.add("web2"))[0]  # an env more
    another = {"cp.get_file_str": lambda url: "another"}
    assert rendered_again(host, lambda: host.salt.update(another))[0]
    again = rendered_again(host, lambda: (host.root / "monit").write_text("a newer one"))
    assert again[0] is False  # of the same version
    assert rendered_again(host) == (False, {})


def test_agents_last_answer_stands_for_moments_and_only_for_what_it_saw(host):
    host.add("web1")
    host.rendered = {"web1": "  a"}
    host.apply("checks_present")
    (host.state / "inbox").mkdir()
    (host.state / "published").write_text("all of it\n")
    digest = lambda text: hashlib.sha256(text.encode()).hexdigest()  # noqa: E731
    same = lambda path: digest(json.dumps(json.loads(path.read_text()), sort_keys=True))  # noqa: E731
    good = {
        "m": time.monotonic(),
        "config": same(host.root / "etc/cbsd_monit.json"),
        "trust": same(host.state / "trust.json"),
        "published": digest("all of it\n"),
        "limit": 100,
        "answer": {"quarantined": {"web1": "refused: no"}, "warnings": ["a warning"]},
    }
    host.services, host.looked_at = ["cbsd_monit-look", "web1.http"], int(time.time())
    host.listen()

    def asked(**changes):
        (host.run / "passed.json").write_text(json.dumps({**good, **changes}))
        host.ran.clear()
        ret = host.apply("checks_present")
        return bool(host.ran), ret

    ran, ret = asked()
    assert not ran
    assert ret["result"] is False
    assert "web1: quarantined: refused: no" in ret["comment"]
    assert "a warning" in ret["comment"]
    assert asked(m=time.monotonic() - 200)[0] and asked(m=time.monotonic() + 50)[0]
    for key in ("config", "trust", "published"):
        assert asked(**{key: digest("other")})[0], key

    host.looked_at = int(time.time()) - 90
    assert not asked()[0] and asked(limit=80)[0], "monit stands still for longer than the limit"
    del good["limit"]
    assert asked()[0], "an agent of before said no limit"
    good["limit"] = 100
    host.services.append(f"<![CDATA[<collected_sec>{int(time.time())}</collected_sec>]]>")
    assert asked(limit=80)[0], "a probe's output is no word of monit's"
    host.looked_at = int(time.time()) + 50
    assert asked()[0], "by a clock that was set back nothing is known"
    host.looked_at = None
    assert asked()[0], "monit has looked at nothing yet"
    host.looked_at = int(time.time())
    for host.monit_answers in ("401 Unauthorized", "503 Service Unavailable", "nonsense"):
        assert asked()[0], host.monit_answers
    host.monit_answers = "200 OK"
    (host.state / "monit.sock").rename(host.state / "elsewhere.sock")
    assert asked()[0], "no monit answers"
    (host.state / "elsewhere.sock").rename(host.state / "monit.sock")
    assert not asked()[0]

    (host.state / "published").write_text("by hand\n")
    assert asked()[0]
    (host.state / "published").write_text("all of it\n")
    (host.state / "inbox/7.1:remove.d:web1").touch()
    assert asked()[0]
    (host.state / "inbox/7.1:remove.d:web1").unlink()
    assert not asked()[0]
    host.rendered = {"web1": "  b"}
    assert asked()[0]


def test_undo_of_a_newer_formula_stops_every_state(host):
    host.state.mkdir()
    (host.state / "undo.json").write_text('{"schema": 2, "hooks": {}}')
    (host.workdir / "share/jail-system-default").mkdir()
    before = host.tree()
    for state in ("hooks_present", "hooks_absent", "include_present"):
        done = host.apply(state, name=str(host.monitrc))
        assert done["result"] is False and "another version" in done["comment"]
    assert host.tree() == before
