"""monit's language: what a text would run, name and change, seen as monit's lexer sees it."""

import language

from .conftest import cases


@cases(
    ("text", "words"),
    ("a b#c # d\n#e\nf", ["a", "b#c", "f"]),
    ("if(x)=1,\"a #b\";{'c d'}", [*"if ( x ) = 1 ,".split(), '"a #b"', ";", "{", "'c d'", "}"]),
    ('"two\nlines" z', ['"two\nlines"', "z"]),
)
def test_tokens(text, words):
    assert [match.group() for match in language.tokens(text)] == words
    assert not language.unbalanced(text) and language.unbalanced(text + '\n"open')


@cases(
    ("line", "commands"),
    ('then exec "/bin/x a"', ["/bin/x a"]),
    ("then(execute '/bin/x')", ["/bin/x"]),
    ('start "/a" start = "/b" startprogram "/c" start program="/d"', ["/a", "/b", "/c", "/d"]),
    ('restart "/a" then;exec "/b" if host a#b then(exec "/c")', ["/a", "/b", "/c"]),
    ('start program = "/bin/x" stop "/bin/y"', ["/bin/x", "/bin/y"]),
    ("restartprogram /bin/x", ["/bin/x"]),
    ('CHECK PROGRAM p WITH PATH "/bin/x"', ["/bin/x"]),
    ('check file f with path /etc/x\n# exec "/bin/x"', []),
    ("then restart if x then stop\nif x then start", []),
    ("then exec", []),
)
def test_executed(line, commands):
    found = language.executed(line)
    assert [command for _, _, command in found] == commands
    assert [language.unquote(line[start:end]) for start, end, _ in found] == commands


@cases(
    ("text", "services", "word"),
    ("check host a with address b\nCheck file 'c d' path /x", ["a", "c d"], None),
    ("check host set#x with address b SET daemon 1", ["set#x"], "SET"),
    ('# set\ncheck host "include" address b', ["include"], None),
    ("include /etc/x", [], "include"),
    ("check", [], None),
)
def test_services_and_what_reaches_beyond_them(text, services, word):
    assert language.service_names(text) == services
    assert language.changes_the_node(text) == word


@cases(
    ("text", "word"),
    ('check host lb1 with address "a b"\n  if failed port 80 for 3 cycles then alert', None),
    ("check host other with address 1.1.1.1", "other"),
    ('check program lb1 with path "/wake probe lb1 x"', None),
    ('check program lb1 path "/bin/evil"', "program"),
    ("check file lb1 with path /etc/x", "/etc/x"),
    ("if failed uid root", "uid"),
)
def test_unknown_word(text, word):
    assert language.unknown_word(text, {"lb1"}, "/wake probe lb1") == word


def test_what_would_only_tell_or_unmonitor_wakes_the_agent():
    text = """check host "a.x" with address "1.1.1.1"
  if failed port 1 then alert else if succeeded then ALERT
  if 3 restarts within 5 cycles then unmonitor
  if failed port 2 then stop # then alert
  alert root@localhost
check process b with pidfile "/p"
  stop program = "/bin/stop" if failed port 3 then stop
  if failed port 4 then exec "/bin/x then alert"
"""
    found = language.waking(text, "/w")
    assert (
        found
        == """check host "a.x" with address "1.1.1.1"
  if failed port 1 then exec "/w monit a.x" else if succeeded then exec "/w monit a.x"
  if 3 restarts within 5 cycles then exec "/w monit a.x"
  if failed port 2 then exec "/w monit a.x" # then alert
  alert root@localhost
check process b with pidfile "/p"
  stop program = "/bin/stop" if failed port 3 then stop
  if failed port 4 then exec "/bin/x then alert"
"""
    )
    assert language.waking(found, "/w") == found
