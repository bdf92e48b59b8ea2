"""The text of one env as monit would get it: its template, filled with facts, or why not."""

import functools
import os
import re
from collections import namedtuple

import cbsd
import language
from node import AgentError

MARK = "# --- cbsd_monit "
_FACT = re.compile(r"%%([A-Za-z0-9_]+)%%")
_SAFE = re.compile(r"[A-Za-z0-9_.:/@+=,-]+\Z")
# What monit's cron parser survives: 5.33 accepts `",,, * * * *"` and ends when the time comes.
_CRON = re.compile(r"""\bevery\s+(["'])(.*?)\1""", re.I)
_CRON_FIELD = re.compile(r"(?:\*|\d+(?:-\d+)?(?:,\d+(?:-\d+)?)*)\Z")
_TESTED = re.compile(r"(?<!else )if\s+(?:failed|succeeded)\b(.*?)\bthen\b", re.I | re.S)
WORST = 600  # seconds
_FILE = re.compile(r'(?mi)^\s*check\s+file\s+"?([^"\s]+)')
_TIMEOUT = 5  # seconds, monit's own where a test does not say
_UNTRUSTED = ", and neither pillar says so nor is its directory root's alone"
_RESTARTS = ("jrestart", "brestart", "jstart", "bstart")


class EnvError(AgentError):
    """Why the text of one env cannot be used."""


@functools.lru_cache(maxsize=4096)
def service_prefix(env):
    """The env's name in names of services: monit folds case, CBSD does not."""
    return re.sub("[A-Z]", lambda m: "=" + m.group().lower(), env)


def digest(text):
    import hashlib

    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def trusted(found, digests):
    """
    True if pillar wrote what lies in an env's directory, or nobody but root could have.

    found
        Its ``template`` and ``policy`` as they were read, and ``roots``; what lies there by now
        does not matter.
    digests
        Its entry in trust.json: {"monitrc.tpl": SHA-256, "policy.json": SHA-256}, or None.
    """
    texts = {"monitrc.tpl": found.template, "policy.json": found.policy}
    if isinstance(digests, dict) and digests.get("monitrc.tpl"):
        if all(t is not None and digest(t) == digests.get(name) for name, t in texts.items()):
            return True
    return found.roots


def facts_of(node, env, row, snapshot):
    """
    Facts for the template of ``env``: what the last hook saw, corrected by the inventory.

    The hook's addresses count as long as the inventory still has the ``ip4_addr`` that the hook
    saw; otherwise they follow from the inventory by CBSD's own rules.
    """
    facts = dict(snapshot or {})
    same = facts.get("ip4_addr") == row.get("ip4_addr") and facts.get("ipv4_first")
    facts.update({k: v for k, v in row.items() if v})
    if not same:
        facts.update(cbsd.addresses(row.get("ip4_addr")))
    facts.update(
        jname=env,
        env=service_prefix(env),
        address=facts.get("ipv4_first") or facts.get("ipv6_first") or "",
        wake=node.wake,
        dead=node.dead_marker(env),
        workdir=node.workdir,
    )
    return {k.upper(): v for k, v in facts.items()}


def fill(template, facts):
    """Fill in a template; raises EnvError for a fact that is unknown, empty or unsafe in monit."""
    return _FACT.sub(lambda match: _value(match.group(1).upper(), facts), template)


def _value(name, facts):
    found = facts.get(name)
    if found is None:
        raise EnvError(f"the template asks for %%{name}%%, which no hook of CBSD exports")
    if not found and name in ("ADDRESS", "IPV4_FIRST"):
        raise EnvError(f"no address yet: ip4_addr is {facts.get('IP4_ADDR', '')!r}")
    if not found:
        raise EnvError(f"the fact %%{name}%% is empty for this env")
    if not _SAFE.match(found):
        raise EnvError(f"the fact %%{name}%% is {found!r}, which monit could misread")
    return found


def refused(text):
    """Why no env may say ``text``, whoever wrote it; '' if nothing speaks against it."""
    if any(ord(c) < 32 and c not in "\n\t\r" or ord(c) == 127 for c in text):
        return "the text holds control characters"
    if text.startswith(MARK) or "\n" + MARK in text:
        return f"a line begins with {MARK.strip()!r}, which parts one env from the next"
    word = language.changes_the_node(text)
    if word:
        return f"`{word}` in the text of one env would change the whole node"
    if language.unbalanced(text):
        return "unbalanced quotes"
    for _, cron in _CRON.findall(text):
        fields = cron.split()
        if len(fields) != 5 or not all(_CRON_FIELD.match(field) for field in fields):
            return f"`every {cron!r}` is no time that every version of monit survives"
    return ""


@functools.lru_cache(maxsize=512)
class Template:
    """
    What can be said of a template before any fact is known, once for all envs that share it.

    Facts hold neither quotes nor blanks. Where all of them stand in double quotes, what is a word,
    a name or a command in the template is one in every text made from it. ``plain`` is such a
    template that says only what the formula renders; any other is checked again once it is filled.
    """

    def __init__(self, text):
        text = language.waking(text, "%%WAKE%%")
        self.pieces = _FACT.split(text)
        self.pieces[1::2] = [name.upper() for name in self.pieces[1::2]]
        words = language.tokens(text)
        quoted = sum(len(_FACT.findall(m.group())) for m in words if m.group()[0] == '"')
        comments = sum(len(_FACT.findall(line)) for line in re.findall(r"(?m)^\s*#.*$", text))
        probe = "%%WAKE%% probe %%JNAME%%"
        ours = ("%%WAKE%% monit ", probe + " ")
        self.plain = (
            quoted + comments == len(self.pieces) // 2
            and not refused(text)
            and all(command.startswith(ours) for _, _, command in language.executed(text))
            and language.unknown_word(text, set(), probe) is None
        )
        names = language.service_names(text) if self.plain else []
        self.names = [_FACT.split(name) for name in names]
        for name in self.names:
            name[1::2] = [fact.upper() for fact in name[1::2]]

    def fill(self, facts):
        """(text, names of its services or None) with the facts filled in; raises EnvError."""
        values = {name: _value(name, facts) for name in dict.fromkeys(self.pieces[1::2])}
        names = [_joined(name, values) for name in self.names] if self.plain else None
        return _joined(self.pieces, values), names


def _joined(pieces, values):
    pieces = list(pieces)
    pieces[1::2] = [values[name] for name in pieces[1::2]]
    return "".join(pieces)


@functools.lru_cache(maxsize=4096)
def sweep(text, poll):
    """
    (seconds, seconds or None): the time that monit needs for the network tests of ``text`` when no
    address answers, and the shortest interval that the text promises, None without such a test.

    monit runs tests over the network one after the other; programs run beside them.
    """
    total, shortest = 0.0, None
    for service in re.split(r"(?mi)^(?=check\s)", text):
        if not re.match(r"check\s+(host|remote)\b", service, re.I):
            continue
        every = re.search(r"(?mi)^\s*every\s+(\d+)\s+cycles?", service)
        interval = poll * int(every.group(1) if every else 1)
        for test in _TESTED.findall(service):
            numbers = re.findall(r"\b(timeout|retry|count)\s+(\d+)", test, re.I)
            number = {key: int(value) for key, value in numbers}
            pings = re.search(r"\bping[46]?\b", test)
            times = number.get("count", 3) if pings else number.get("retry", 1)
            total += number.get("timeout", _TIMEOUT) * times
            shortest = min(interval, shortest or interval)
    return total, shortest


def limits(head, texts, poll):
    """
    (seconds of monit's worst cycle, sentences): what asking one after the other means for these.

    A cycle in which no address answers is taken for WORST seconds at most.
    """
    total, shortest = sweep(head, poll)
    for text in texts:
        seconds, interval = sweep(text.template, poll)
        total += seconds
        shortest = min(interval or shortest or 0, shortest or interval or 0)
    return round(min(WORST, poll + total), 1), _sentences(total, shortest)


def _sentences(total, shortest):
    if not shortest or total <= shortest:
        return []
    return [
        f"if no address of this node answered, monit would need {total:.0f} s to go round all "
        "network checks once (the sum of their time-outs: it asks one after the other), and the "
        f"shortest interval is {shortest:.0f} s"
    ]


# ``names`` of services; ``foreign`` commands it runs; ``rank``: who keeps a name that two claim.
_Fields = namedtuple("_Fields", "env text names foreign rank template")


class EnvText(_Fields):
    """The text of one env as it is published, and what it says to monit."""

    def services(self):
        """{service name: check name}."""
        prefix = service_prefix(self.env) + "."
        return {n: n[len(prefix) :] if n.startswith(prefix) else n for n in self.names}


def make(node, env, template, facts, trusted, owners=None, rank=()):
    """
    The EnvText of ``env``.

    owners
        {prefix of services: env} of all envs of the node.

    Raises EnvError if it cannot be used.
    """
    plain = Template(template)
    text, names = plain.fill(facts)
    if names is None:
        why = refused(text)
        if why:
            raise EnvError(why)
        names = language.service_names(text)
    for name in names:
        _check_name(env, name, trusted, owners or {})
    _check_checks(env, text, names)
    foreign = []
    if not plain.plain:
        text, foreign = _commands(node, env, text, trusted)
        own = {env, *names}
        word = not trusted and language.unknown_word(text, own, f"{node.wake} probe {env}")
        if word:
            raise EnvError(f"it says {word!r}{_UNTRUSTED}")
    return EnvText(env, f"{MARK}{env}\n{text.rstrip()}\n", names, foreign, rank, template)


def kept(env, part, rank=()):
    """The EnvText of a published part, kept because the env's new text cannot be made now."""
    return EnvText(env, part, language.service_names(part), [], rank, part)


def _check_name(env, name, trusted, owners):
    """Raise EnvError if the env must not have a service of this name."""
    own = (env.lower(), service_prefix(env))
    owner = owners.get(name.lower().partition(".")[0], env) if "." in name else env
    service, why = "a service must not be called", ""
    if name.lower() in ("all", "_status"):
        why = f"{service} {name}: monit takes it for a pattern or a page"
    elif name == "cbsd_monit-look" or name.startswith("node-") and name.lower() not in own:
        why = f"{service} {name}: names of the node's own checks begin like that"
    elif owner != env:
        why = f"a service of {env} must not be called {name}, which is a name of {owner}'s"
    elif not trusted and name.lower() not in own and not name.startswith(own[1] + "."):
        why = f"a service of {env} must be called {own[1]} or {own[1]}.…, not {name}"
    if why:
        raise EnvError(why)


def _check_checks(env, text, names):
    """Raise EnvError if two services stand for one check, or one that is not ours for the env."""
    prefix = service_prefix(env) + "."
    checks = [name.lower().removeprefix(prefix) for name in names]
    twice = next((check for check in checks if checks.count(check) > 1), None)
    if twice and len({name.lower() for name in names}) == len(names):
        raise EnvError(f"two of its services are the check {twice}")
    files = (match.group(1).lower() for match in _FILE.finditer(text))
    if "env" in checks and f"{prefix}env" not in files:
        raise EnvError("the check env is the env itself, by a `check file` of its marker %%DEAD%%")


def _commands(node, env, text, trusted):
    """
    (text, [command]): ways to restart the env become wakes of the agent; the rest is foreign.

    Upstream's rule runs `cbsd jrestart lb1`, which does nothing for a dead jail; the agent heals.
    Raises EnvError for a foreign command that nobody vouches for.
    """
    foreign = []
    for start, end, command in reversed(language.executed(text)):
        words = command.split()
        if words[:1] == [node.wake] and (words[1:2] == ["monit"] or words[1:3] == ["probe", env]):
            continue
        if _restarts(words, env):
            service = (language.service_names(text[:start]) or [env])[-1]
            text = f'{text[:start]}"{node.wake} monit {service}"{text[end:]}'
            continue
        if not trusted:
            raise EnvError(f"it would run {command!r} as root{_UNTRUSTED}")
        foreign.append(command)
    return text, foreign


def _restarts(words, env):
    """True for a command like `/usr/local/bin/cbsd jrestart lb1`."""
    cbsd_verb = len(words) >= 3 and os.path.basename(words[0]) == "cbsd" and words[1] in _RESTARTS
    return cbsd_verb and words[-1] in (env, f"jname={env}")
