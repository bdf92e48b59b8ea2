"""Facts, templates, and what the text of one env may say to monit."""

import pytest
import text
from text import EnvError

from .conftest import GOOD, cases, claim, facts


def make(node, template, trusted=True, env="lb1", **row):
    return text.make(node, env, template, facts(node, env, **row), trusted)


WEB = 'check host "%%ENV%%.web" with address "%%ADDRESS%%"\n'
FILE = 'check file "%%ENV%%.a" with path "%%DEAD%%"\n'
UPSTREAM = """check host %%JNAME%% with address %%IPV4_FIRST%%
  if failed port 80 protocol http
    then exec "/usr/local/bin/cbsd jrestart %%JNAME%%" repeat every 1 cycles
"""


def test_env_names_differ_where_monit_folds_case():
    assert len({text.service_prefix(n).lower() for n in ("lb1", "LB1", "Lb1", "lb_1")}) == 4


def test_address_change_in_the_inventory_wins_over_an_old_hook(node):
    snapshot = {"ip4_addr": "10.0.0.1/24", "ipv4_first": "10.0.0.1"}
    found = text.facts_of(node, "lb1", {"ip4_addr": "10.0.0.9/24"}, snapshot)
    assert found["ADDRESS"] == "10.0.0.9"


def test_no_address_is_a_clear_message(node):
    found = facts(node, ip4_addr="fde4::1/64")
    assert text.fill('"%%ADDRESS%%"', found) == '"fde4::1"'
    with pytest.raises(EnvError, match="no address yet: ip4_addr is 'fde4::1/64'"):
        text.fill("%%IPV4_FIRST%%", found)
    for ip4_addr in ("DHCP", "REALDHCP", "0", ""):
        with pytest.raises(EnvError, match=f"no address yet: ip4_addr is '{ip4_addr}'"):
            make(node, UPSTREAM, ip4_addr=ip4_addr)


@pytest.mark.parametrize("value", ['a"b', "a b", "a\nb", "a'b", "a;b", "a{b", "ü", "a#b", "a\\b"])
def test_fact_that_monit_could_misread_is_refused_and_an_unknown_one_is_named(node, value):
    with pytest.raises(EnvError, match="%%HOST_HOSTNAME%%"):
        text.fill("%%HOST_HOSTNAME%%", facts(node, host_hostname=value))
    with pytest.raises(EnvError, match="%%NOSUCH%%"):
        text.fill("%%NOSUCH%%", facts(node))


@cases(
    ("template", "words"),
    ("set daemon 1\n", "change the whole node"),
    (f'{claim("x")}INCLUDE "/etc/x"\n', "change the whole node"),
    (claim("lb1#x", "alert set daemon 77"), "change the whole node"),  # no comment begins there
    (claim("all"), "must not be called"),
    (f"{FILE}  {GOOD}\n{text.MARK}b\ncheck file b path /x\n", "parts one env from the next"),
    *(
        (f'{FILE}  every "{cron}"\n  {GOOD}\n', "no time that every version of monit survives")
        for cron in (",,, * * * *", "99", "* * * * *,", "*/5 * * * *", "a b c d e")
    ),
    (claim("x").replace("port 1", 'port 1 send "x'), "unbalanced quotes"),
    ("check host x address 1.1.1.1\x07\n", "control characters"),
)
def test_text_that_reaches_beyond_its_env_is_refused(node, template, words):
    with pytest.raises(EnvError, match=words):
        make(node, template, True)


@cases(
    "line",
    'if failed port 1 then exec "/bin/x"',
    'start program = "/bin/x"',
    'stop program "/bin/x"',
    "if failed port 1 then exec /bin/x",
    'if failed port 1 then;exec "/bin/x"',
    "if failed port 1 then exec '/bin/x'",
    'if failed host a#b port 1 then exec "/bin/x"',
)
def test_every_way_that_monit_knows_to_run_something_needs_pillar_or_root(node, line):
    for command in ("/bin/x", "/usr/local/bin/cbsd jrestart other"):
        template = f"check host lb1 with address 1.1.1.1\n  {line.replace('/bin/x', command)}\n"
        with pytest.raises(EnvError, match="as root|it says"):
            make(node, template, False)
    template = f"check host lb1 with address 1.1.1.1\n  {line}\n"
    assert make(node, template, True).foreign == ["/bin/x"]


def test_check_program_is_a_program(node):
    template = 'check program lb1 with path "{}"\n  if status != 0 then alert\n'
    with pytest.raises(EnvError, match="/bin/evil a"):
        make(node, template.format("/bin/evil a"), False)
    assert make(node, template.format(f"{node.wake} probe lb1 x"), False).foreign == []


RENDERED = f"""{WEB}  onreboot laststate
  depends on "%%ENV%%.env"
  every 3 cycles
  if failed port 443 protocol https request "/x" status = 200 content = "a b"
    and certificate valid > 30 days
    with timeout 5 seconds for 3 times within 5 cycles
    then exec "%%WAKE%% monit %%ENV%%.web" repeat every 3 cycles
    else if succeeded for 2 cycles then alert
  if failed ping4 count 3 with timeout 2 seconds then alert
check program "%%ENV%%.app" with path "%%WAKE%% probe %%JNAME%% app" with timeout 9 seconds
  if status != 0 for 2 cycles then alert
"""
DEAD = FILE + '  if exist then exec "%%WAKE%% monit %%ENV%%.env" repeat every 5 cycles\n'


TIMED = f'{FILE}  every "0-30,45 8 * * 1-5"\n  {GOOD}\n'


@pytest.mark.parametrize("template", [UPSTREAM, RENDERED, DEAD, TIMED])
def test_what_we_render_and_what_upstream_wrote_is_harmless_and_heals(node, template):
    made = make(node, template, False)
    assert made.foreign == []
    if template is UPSTREAM:
        assert f'exec "{node.wake} monit lb1" repeat' in made.text
        assert made.services() == {"lb1": "lb1"}


PROBE = 'check program "%%ENV%%.p" with path "%%WAKE%% probe {} p"\n  if status != 0 then alert\n'
TEMPLATES = [
    UPSTREAM,
    WEB + '  if failed port 80 then exec "%%WAKE%% monit %%ENV%%.web"\n',
    PROBE.format("%%JNAME%%"),
    PROBE.format("%%JNAME%%x"),
    WEB.replace('"%%ENV%%.web"', "%%HOST_HOSTNAME%%") + "  if failed port 80 then alert\n",
    WEB.replace("%%ENV%%.web", "%%HOST_HOSTNAME%%") + "  if failed port 80 then alert\n",
    FILE + "  if exist then %%HOST_HOSTNAME%%\n",
    FILE + '  if exist then exec "%%WAKE%% monit %%ENV%%.a" # %%JNAME%%\n',
    FILE.replace('"%%ENV%%.a"', "'%%ENV%%.a'") + "  if exist then alert\n",
]


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("hostname", ["web", "all", "set", "include", "exec", "node-x", "alert"])
@pytest.mark.parametrize("trusted", [True, False])
def test_one_look_at_a_template_is_enough(node, monkeypatch, template, hostname, trusted):
    def outcome():
        text.Template.cache_clear()
        try:
            made = make(node, template, trusted, host_hostname=hostname)
            return made.text, made.names, made.foreign
        except EnvError as err:
            return str(err)

    quick = outcome()
    plain = text.Template.__wrapped__.__init__

    def never(self, text):
        plain(self, text)
        self.plain, self.names = False, []

    monkeypatch.setattr(text.Template.__wrapped__, "__init__", never)
    assert outcome() == quick


def test_sweep_counts_what_monit_does_one_after_the_other():
    rules = """
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
    assert text.sweep(rules, 10) == (10 + 6 + 5, 20)


def test_worst_sweep_longer_than_the_interval_is_said_with_its_numbers(node):
    rule = WEB + "  every 6 cycles\n  if failed port 1 with timeout 4 seconds then alert\n"
    found = [make(node, rule, env=f"e{i}") for i in range(8)]
    assert text.limits(node.head, found[:7], node.poll) == (33, [])
    worst, (words,) = text.limits(node.head, found, node.poll)
    assert worst == 37 and "need 32 s" in words and "interval is 30 s" in words
    assert text.limits(node.head, found * 20, node.poll)[0] == text.WORST
