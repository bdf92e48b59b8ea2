"""monit: the line in its control file, what is put back, and that it runs."""

import stat

import pytest

OURS = "include {}/published"
SAMPLE = """# sample
set daemon  30              # check each 30 s
set httpd port 2812 and
    use address localhost  # only this host
    allow localhost
    allow admin:monit      # password

    #with ssl {
check system $HOST
    if loadavg (1min) > 4 then alert
"""


@pytest.mark.parametrize("newline", ["\n", ""])
def test_line_is_appended_and_taken_back_exactly(host, newline):
    host.monitrc.write_text("set daemon 30" + newline)
    host.monitrc.chmod(0o600)
    before = host.content()
    host.quartet("include_present", name=str(host.monitrc))
    assert host.monitrc.read_text() == f"set daemon 30\ninclude {host.state}/published\n"
    host.quartet("include_absent", name=str(host.monitrc))
    assert {k: v for k, v in host.content().items() if k != "state"} == before


def test_upstream_line_is_replaced_and_put_back(host):
    cbsds = "include /usr/jails/jails-system/*/monit/monitrc"
    other = 'include "/other/jails-system/*/monit/monitrc"'
    text = f"set daemon 30\n  {cbsds}   # CBSD's\nset log syslog\n{other}\n"
    host.monitrc.write_text(text)
    host.monitrc.chmod(0o640)
    before = host.content()
    host.quartet("include_present", name=str(host.monitrc))
    assert "jails-system" not in host.monitrc.read_text()
    assert host.monitrc.read_text().splitlines()[1] == f"include {host.state}/published"
    assert stat.S_IMODE(host.monitrc.stat().st_mode) == 0o600
    host.quartet("include_absent", name=str(host.monitrc))
    assert {k: v for k, v in host.content().items() if k != "state"} == before


def test_edits_of_the_operator_survive(host):
    host.monitrc.write_text("include /usr/jails/jails-system/*/monit/monitrc\nset daemon 30\n")
    host.apply("include_present", name=str(host.monitrc))
    host.monitrc.write_text("# mine\n" + host.monitrc.read_text() + "set log syslog\n")
    assert host.apply("include_present", name=str(host.monitrc))["changes"] == {}
    host.apply("include_absent", name=str(host.monitrc))
    assert host.monitrc.read_text() == (
        "# mine\ninclude /usr/jails/jails-system/*/monit/monitrc\nset daemon 30\nset log syslog\n"
    )


def test_missing_file_is_made_without_the_samples_password_and_goes_again(host):
    (host.root / "sample").write_text(SAMPLE)
    host.lookup["monitrc_sample"] = str(host.root / "sample")
    before = host.content()
    host.quartet("include_present", name=str(host.monitrc))
    lines = host.monitrc.read_text().splitlines()
    assert "#     allow admin:monit      # password" in lines
    assert "# set httpd port 2812 and" in lines
    assert "check system $HOST" in lines and "    if loadavg (1min) > 4 then alert" in lines
    assert stat.S_IMODE(host.monitrc.stat().st_mode) == 0o600
    host.quartet("include_absent", name=str(host.monitrc))
    assert {k: v for k, v in host.content().items() if k != "state"} == before


def test_file_that_was_made_and_then_edited_stays(host):
    host.apply("include_present", name=str(host.monitrc))
    host.monitrc.write_text(host.monitrc.read_text() + "set log syslog\n")
    host.apply("include_absent", name=str(host.monitrc))
    assert "set log syslog" in host.monitrc.read_text()
    assert "include" not in host.monitrc.read_text()


def test_glob_mode_has_cbsds_line_to_the_letter_and_changes_back(host):
    host.monitrc.write_text("set daemon 30\n")
    host.monitrc.chmod(0o600)
    before = host.content()
    host.quartet("include_present", name=str(host.monitrc), mode="glob")
    assert f"include {host.workdir}/jails-system/*/monit/monitrc\n" in host.monitrc.read_text()
    host.quartet("include_present", name=str(host.monitrc), mode="publish")
    assert host.monitrc.read_text() == f"set daemon 30\ninclude {host.state}/published\n"
    host.quartet("include_present", name=str(host.monitrc), mode="glob")
    host.quartet("include_absent", name=str(host.monitrc))
    assert {k: v for k, v in host.content().items() if k != "state"} == before


def test_text_that_monit_refuses_replaces_nothing(host):
    host.monitrc.write_text("set daemon 30\n")
    host.monit_says = "{}:1: syntax error 'x'"
    before = host.tree()
    for test in (True, False):
        done = host.apply("include_present", name=str(host.monitrc), test=test)
        assert done["result"] is False and f"{host.monitrc}:1: syntax error 'x'" in done["comment"]
        assert host.tree() == before


def test_running_asks_the_socket_and_starts_what_does_not_answer(host):
    said = host.apply("running", test=True)
    assert said["result"] is None and host.ran == []
    done = host.apply("running")
    assert done["result"] is True and done["changes"] == said["changes"]
    assert host.ran == [["monit-start"]]
    for test in (False, True):
        assert host.apply("running", test=test)["changes"] == {}


def test_monit_that_has_not_read_what_is_published_is_told_once(host):
    host.state.mkdir()
    (host.state / "published").write_text('check host "LB1.http" with address 10.0.0.1\n')
    host.listen()
    done = host.quartet("running")
    assert done["changes"]["monit"] == {"old": "does not know LB1.http", "new": "reloaded"}
    assert host.ran == [["monit", "-c", str(host.monitrc), "reload"]]


def test_monit_that_does_not_come_up_is_quoted(host):
    failure = {"retcode": 3, "stdout": "", "stderr": "no such service"}
    host.salt["cmd.run_all"] = lambda argv, **_: failure
    done = host.apply("running", timeout=0.2)
    assert done["result"] is False and "no such service" in done["comment"]
