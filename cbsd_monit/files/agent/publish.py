"""
What monit includes: one file made from every env's template and facts, behind a symlink, swapped as a whole.

An env whose text cannot be used keeps the rest of the node out of trouble: it is left out and named, with the reason.
"""

import bisect
import contextlib
import functools
import os
import re

import cbsd
import files
import language
from node import AgentError

KEEP = 5
MARK = "# --- cbsd_monit "
INCLUDES = 1024  # files that monit takes by one `include`, whatever the version
ONE_BY_ONE = (
    8  # so many envs that monit refuses are hunted down; with more of them each env is asked alone
)
_FACT = re.compile(r"%%([A-Za-z0-9_]+)%%")
_SAFE = re.compile(r"[A-Za-z0-9_.:/@+=,-]+\Z")
_BLAMED = re.compile(r"published:(\d+)")
_QUOTED = re.compile(r"'([^']+)'")
# What monit's cron parser survives: 5.33 takes `",,, * * * *"` for good and ends when the time comes.
_CRON = re.compile(r"""\bevery\s+(["'])(.*?)\1""", re.I)
_CRON_FIELD = re.compile(r"(?:\*|\d+(?:-\d+)?(?:,\d+(?:-\d+)?)*)\Z")
_TESTED = re.compile(r"(?<!else )if\s+(?:failed|succeeded)\b(.*?)\bthen\b", re.I | re.S)
_TIMEOUT = 5  # seconds, monit's own where a test does not say
_UNTRUSTED = ", and neither pillar says so nor is its directory root's alone"
_RESTARTS = ("jrestart", "brestart", "jstart", "bstart")


class EnvError(AgentError):
    """Why the text of one env cannot be used."""


def service_prefix(env):
    """The env's name in names of services: monit folds case, CBSD does not."""
    return re.sub("[A-Z]", lambda m: "=" + m.group().lower(), env)


def digest(text):
    import hashlib

    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def trusted(node, env, trust=None):
    """
    True if pillar wrote what lies in the env's directory, or nobody but root could have.

    ``trust`` is the content of trust.json, read if it is not given. The answer is about the very texts that
    ``env.files()`` returns, whatever lies there by now.
    """
    texts, roots = env.files()
    said = (files.read_json(node.in_state("trust.json"), {}) if trust is None else trust).get(
        env.name
    )
    if isinstance(said, dict) and said.get("monitrc.tpl"):
        if all(text is not None and digest(text) == said.get(name) for name, text in texts.items()):
            return True
    return roots


def facts_of(node, env, row, snapshot):
    """
    Facts for the template of ``env``: what the last hook saw, corrected by the inventory.

    The addresses are the hook's as long as the inventory still has the ``ip4_addr`` that the hook saw; else they follow
    from the inventory by CBSD's own rules.
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
    """Put the facts into a template; raises EnvError for one that is unknown, empty or not safe in monit's language."""
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
    What can be said of a template before any fact is known, once for all envs that have the same.

    Facts hold neither quotes nor blanks: where all of them stand in double quotes, what is a word, a name or a command in the template
    is one in every text made from it. Such a template is ``plain``, and so is one that says nothing but what the formula
    renders; any other is looked at again with its facts filled in.
    """

    def __init__(self, text):
        self.pieces = _FACT.split(text)
        self.pieces[1::2] = [name.upper() for name in self.pieces[1::2]]
        words = language.tokens(text)
        quoted = sum(len(_FACT.findall(m.group())) for m in words if m.group()[0] == '"')
        comments = sum(len(_FACT.findall(line)) for line in re.findall(r"(?m)^\s*#.*$", text))
        self.plain = quoted + comments == len(self.pieces) // 2 and not refused(text)
        self.names = (
            [_FACT.split(name) for name in language.service_names(text)] if self.plain else []
        )
        for name in self.names:
            name[1::2] = [fact.upper() for fact in name[1::2]]
        probe = "%%WAKE%% probe %%JNAME%%"
        self.plain = (
            self.plain
            and all(
                c.startswith(("%%WAKE%% monit ", probe + " "))
                for _, _, c in language.executed(text)
            )
            and language.unknown_word(text, set(), probe) is None
        )

    def fill(self, facts):
        """(the text, names of its services) with the facts in place; raises EnvError as ``fill`` does."""
        values = {name: _value(name, facts) for name in dict.fromkeys(self.pieces[1::2])}
        names = [_joined(name, values) for name in self.names] if self.plain else None
        return _joined(self.pieces, values), names


def _joined(pieces, values):
    pieces = list(pieces)
    pieces[1::2] = [values[name] for name in pieces[1::2]]
    return "".join(pieces)


@functools.lru_cache(maxsize=4096)
def _sweep(text, poll):
    return sweep(text, poll)


def sweep(text, poll):
    """
    (seconds, seconds): how long monit needs for the tests of ``text`` when no address answers, and the shortest interval it promises.

    monit runs the tests over the network one after the other; programs run beside them. The second is None where there is none.
    """
    total, shortest = 0.0, None
    for service in re.split(r"(?mi)^(?=check\s)", text):
        if not re.match(r"check\s+(host|remote)\b", service, re.I):
            continue
        every = re.search(r"(?mi)^\s*every\s+(\d+)\s+cycles?", service)
        interval = poll * int(every.group(1) if every else 1)
        for test in _TESTED.findall(service):
            number = {
                k: int(n) for k, n in re.findall(r"\b(timeout|retry|count)\s+(\d+)", test, re.I)
            }
            times = (
                number.get("count", 3)
                if re.search(r"\bping[46]?\b", test)
                else number.get("retry", 1)
            )
            total += number.get("timeout", _TIMEOUT) * times
            shortest = min(interval, shortest or interval)
    return total, shortest


class EnvText:
    """The text of one env as it would be published, and what it says to monit."""

    def __init__(self, node, env, template, facts, trusted, owners=None, rank=()):
        self.env, self.rank, self.template = env, rank, template
        plain = Template(template)
        text, self.names = plain.fill(facts)
        if self.names is None:
            why = refused(text)
            if why:
                raise EnvError(why)
            self.names = language.service_names(text)
        owners = owners or {}
        own = (env.lower(), service_prefix(env))
        for name in self.names:
            if name.lower() in ("all", "_status"):
                raise EnvError(
                    f"a service must not be called {name}: monit takes it for a pattern or a page"
                )
            if name == "cbsd_monit-look" or name.startswith("node-") and name.lower() not in own:
                raise EnvError(
                    f"a service must not be called {name}: names of the node's own checks begin like that"
                )
            owner = owners.get(name.lower().partition(".")[0], env) if "." in name else env
            if owner != env:
                raise EnvError(
                    f"a service of {env} must not be called {name}, which is a name of {owner}'s"
                )
            if not trusted and name.lower() not in own and not name.startswith(own[1] + "."):
                raise EnvError(
                    f"a service of {env} must be called {own[1]} or {own[1]}.…, not {name}"
                )
        foreign = []
        for start, end, command in () if plain.plain else reversed(language.executed(text)):
            words = command.split()
            if words[:1] == [node.wake] and words[1:2] == ["monit"]:
                continue
            if words[:1] == [node.wake] and words[1:3] == ["probe", env]:
                continue
            if _restarts_itself(words, env):
                owner = language.service_names(text[:start])
                command = f"{node.wake} monit {(owner or [env])[-1]}"
                text = f'{text[:start]}"{command}"{text[end:]}'
                continue
            if not trusted:
                raise EnvError(f"it would run {command!r} as root{_UNTRUSTED}")
            foreign.append(command)
        word = (
            None
            if trusted or plain.plain
            else language.unknown_word(text, {env, *self.names}, f"{node.wake} probe {env}")
        )
        if word:
            raise EnvError(f"it says {word!r}{_UNTRUSTED}")
        self.foreign = foreign
        self.text = f"{MARK}{env}\n{text.rstrip()}\n"

    def services(self):
        """{service name: check name} of this env."""
        prefix = service_prefix(self.env) + "."
        return {n: n[len(prefix) :] if n.startswith(prefix) else n for n in self.names}


class Kept(EnvText):
    """What was published for an env before, kept because its new text cannot be made now."""

    def __init__(self, env, part, rank=()):  # pylint: disable=super-init-not-called
        self.env, self.text, self.foreign, self.rank, self.template = env, part, [], rank, part
        self.names = language.service_names(part)


def _restarts_itself(words, env):
    """Upstream's rule: `exec "/usr/local/bin/cbsd jrestart lb1"`, which does nothing for a dead jail; we heal instead."""
    return (
        len(words) >= 3
        and os.path.basename(words[0]) == "cbsd"
        and words[1] in _RESTARTS
        and words[-1] in (env, f"jname={env}")
    )


class Publisher:
    """Compares what should be published with what is, and makes it so."""

    def __init__(self, node, monit):
        self.node, self.monit = node, monit
        self.link = node.in_state("published")
        self.folder = node.in_state("generations")
        self.head = node.conf.get("head", "")
        self.parses = 0
        self.sound = (
            None  # (the operator's control file, the text it would include) that monit took last
        )
        # With `include: glob` monit reads `head` and the envs' own files, as the chapter has it; the generations are
        # made all the same, to be compared and tested.
        self.glob = node.conf.get("include") == "glob"

    def current(self):
        """The text that monit includes now; '' if there is none."""
        try:
            with open(self.link, encoding="utf-8", errors="surrogateescape") as handle:
                return handle.read()
        except OSError:
            return ""

    def compose(self, texts):
        """The one text made of those of the envs."""
        own = [t.text for t in texts]
        return "".join([f"# cbsd_monit: node {self.node.name}\n", self.head.rstrip() + "\n", *own])

    # What monit would say

    def _control(self):
        """The operator's control file; '' if there is none."""
        with contextlib.suppress(OSError), open(
            self.node.conf["monitrc"], encoding="utf-8"
        ) as handle:
            return handle.read()
        return ""

    def tested(self):
        """True if monit took the very text that is published, with the control file as it is now, on trial in this pass."""
        return not self.glob and self.sound == (self._control(), self.current())

    def _trial(self, stage, control):
        """A control file that includes ``stage`` where the operator's own, ``control``, includes what is published."""
        kept = [
            line
            for line in control.splitlines()
            if not re.match(
                r"\s*include\s+\S*(/published|/head|/jails-system/\*/monit/monitrc)\"?\s*$", line
            )
        ]
        if not re.search(r"^\s*set\s+daemon", control, re.M):
            kept.append("set daemon 30")
        return "\n".join([*kept, f"include {stage}", ""])

    def _words(self, texts):
        """What monit says of these texts together with the operator's own monitrc; '' if they are good."""
        stage, trial = os.path.join(self.folder, ".stage"), os.path.join(self.folder, ".monitrc")
        self.parses += 1
        control, text = self._control(), self.compose(texts)
        try:
            files.scratch(stage, text)
            files.scratch(trial, self._trial(stage, control))
            words = self.monit.test(trial)
        finally:
            files.remove(trial)
            files.remove(stage)
        if not words:
            self.sound = control, text
        return words.replace(stage, "published").replace(trial, self.node.conf["monitrc"])

    def _blamed(self, words, texts):
        """The places in ``texts`` that monit's words point at, the likeliest first."""
        numbers = _BLAMED.findall(words)
        found, lines = [], 0
        starts = []
        for text in texts:
            starts.append(lines)
            lines += text.text.count("\n")
        before = self.compose([]).count("\n")
        for number in reversed(numbers):
            at = bisect.bisect_right(starts, int(number) - before - 1) - 1
            found += [at, at - 1]  # a statement that is not finished is noticed in the next env
        for name in _QUOTED.findall(words):  # `Depending service 'x' is not defined` has no line
            found += [at for at, text in enumerate(texts) if name in text.text][:2]
        return [at for at in dict.fromkeys(found) if 0 <= at < len(texts)]

    def _cured(self, words, texts):
        """The place of the one env without which monit takes all others, or None: whom its words blame is left out on trial."""
        for at in self._blamed(words, texts)[:3]:
            if not self._words(texts[:at] + texts[at + 1 :]):
                return at
        return None

    def _culprit(self, words, texts):
        """
        The place of the first env that monit does not take: the shortest beginning of ``texts`` that is refused ends with it.

        Found by halving, from where its words point at.
        """
        good, bad = 0, len(texts)
        for at in self._blamed(words, texts)[:1]:
            for edge in (at, at + 1, at - 1):
                if good < edge < bad:
                    good, bad = (good, edge) if self._words(texts[:edge]) else (edge, bad)
        while bad - good > 1:
            half = (good + bad) // 2
            good, bad = (good, half) if self._words(texts[:half]) else (half, bad)
        return bad - 1

    def accept(self, texts, before=()):
        """
        Split ``texts`` into those that monit takes together and {env: monit's words} for the others.

        before
            Names of envs that were refused the last time: asked about after the others, so that they cost one trial.

        Raises AgentError when monit does not take the node's own control file.
        """
        bad, taken, fresh = {}, {}, []
        for text in sorted(texts, key=lambda t: (t.rank, t.env)):
            names = [n.lower() for n in text.names]
            twin = next((taken[n] for n in names if n in taken), None)
            if twin:
                bad[text.env] = f"service name already used by {twin}"
            elif len(set(names)) < len(names):
                bad[text.env] = "two of its services have the same name"
            else:
                taken.update(dict.fromkeys(names, text.env))
                fresh.append(text)
        fresh.sort(key=lambda t: t.env)
        good = self._sound([t for t in fresh if t.env not in before], bad)
        again = [t for t in fresh if t.env in before]
        if again:
            both = sorted(good + again, key=lambda t: t.env)
            words = self._words(both)
            if not words:
                return both, bad
            if len(again) == 1:
                bad[again[0].env] = _reason(words)
                return good, bad
            good = self._sound(both, bad, words)
        return good, bad

    def _sound(self, texts, bad, words=None):
        """Those of ``texts`` that monit takes together; the others go to ``bad`` with monit's words."""
        words = self._words(texts) if words is None else words
        if not words:
            return texts
        at = self._cured(words, texts)
        if at is not None:
            bad[texts[at].env] = _reason(words)
            return texts[:at] + texts[at + 1 :]
        alone = self._words([])
        if alone:
            raise AgentError(f"monit does not accept the node's own control file: {_reason(alone)}")
        for count in range(len(texts)):
            if not words:
                break
            if (
                count == ONE_BY_ONE
            ):  # a template that many share is wrong: each env alone is a parse of a few lines
                said = {t.env: self._words([t]) for t in texts}
                bad.update({env: _reason(words) for env, words in said.items() if words})
                texts = [t for t in texts if not said[t.env]]
            else:
                at = self._culprit(words, texts)
                bad[texts[at].env] = _reason(self._words(texts[: at + 1]))
                texts = texts[:at] + texts[at + 1 :]
            words = self._words(texts)
        return texts

    # Generations

    def changed(self, texts):
        """The names of the envs whose published text would change ('' is the head), and whether anything would."""
        new, old = self.compose(texts), self.current()
        if new == old:
            return [], False
        return sorted({name for name, _ in parts_of(new).items() ^ parts_of(old).items()}), True

    def numbers(self):
        """The generations there are, oldest first."""
        return sorted(int(n) for n in os.listdir(self.folder) if n.isdigit())

    def swap(self, texts):
        """Write a new generation, durably, and point ``published`` at it; returns its number."""
        numbers = self.numbers()
        number = (numbers or [0])[-1] + 1
        files.write(os.path.join(self.folder, str(number)), self.compose(texts))
        files.flush(
            late=False
        )  # all else that was written before, too: records never lag behind what is live
        self.point(number)
        for old in numbers[: 1 - KEEP]:
            files.remove(os.path.join(self.folder, str(old)))
        return number

    def point(self, number):
        """Make generation ``number`` the published one."""
        new = self.link + ".new"
        files.remove(new)
        os.symlink(os.path.join("generations", str(number)), new)
        os.replace(new, self.link)
        fd = os.open(self.node.state, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def generation(self):
        """The number of the published generation, 0 for none."""
        try:
            return int(os.path.basename(os.readlink(self.link)))
        except (OSError, ValueError):
            return 0

    def read(self, number):
        """(head, {env: its part}) of generation ``number``; of none, the present head and no env."""
        try:
            with open(
                os.path.join(self.folder, str(number)), encoding="utf-8", errors="surrogateescape"
            ) as handle:
                parts = parts_of(handle.read())
        except OSError:
            return self.head, {}
        return parts.pop("").partition("\n")[2], parts

    def older(self):
        """The number of the newest generation that says something else than the published one, None if there is none."""
        now = self.current()
        for number in reversed([n for n in self.numbers() if n < self.generation()]):
            with open(
                os.path.join(self.folder, str(number)), encoding="utf-8", errors="surrogateescape"
            ) as handle:
                if handle.read() != now:
                    return number
        return None

    def limits(self, texts):
        """What monit's limits mean for these texts, as sentences with numbers."""
        poll = self.node.poll
        total, shortest = sweep(self.head, poll)
        for text in texts:
            seconds, interval = _sweep(text.template, poll)
            total += seconds
            shortest = min(interval or shortest or 0, shortest or interval or 0)
        if not shortest or total <= shortest:
            return []
        return [
            f"if no address of this node answered, monit would need {total:.0f} s to go round all network checks once (the sum of "
            f"their time-outs: it asks one after the other), and the shortest interval is {shortest:.0f} s"
        ]


def _reason(words):
    """Monit's verdict: the last line that names a place, and what follows it; warnings come before it."""
    lines = words.splitlines() or [words]
    place = max((n for n, line in enumerate(lines) if _BLAMED.search(line)), default=len(lines) - 1)
    return "; ".join(line.strip() for line in lines[place:])


def parts_of(text):
    """{env: its part} of a published text; the head is the part named ''."""
    head, *rest = re.split(f"(?m)^{re.escape(MARK)}(.*)\n", text)
    parts = {"": head}
    for name, part in zip(rest[::2], rest[1::2]):
        parts[name] = f"{MARK}{name}\n{part}"
    return parts
