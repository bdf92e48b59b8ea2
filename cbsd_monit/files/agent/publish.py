"""
What monit includes: one file made from every env's template and facts, behind a symlink, swapped as a whole.

An env whose text cannot be used keeps the rest of the node out of trouble: it is left out and named, with the reason.
"""

import contextlib
import hashlib
import os
import re

import cbsd
import files
import monit as monit_
from node import AgentError

KEEP = 5
MARK = "# --- cbsd_monit "
_FACT = re.compile(r"%%([A-Za-z0-9_]+)%%")
_SAFE = re.compile(r"[A-Za-z0-9_.:/@+=,-]+\Z")
_UNTRUSTED = ", and neither pillar says so nor is its directory root's alone"
_RESTARTS = ("jrestart", "brestart", "jstart", "bstart")


class EnvError(AgentError):
    """Why the text of one env cannot be used."""


def service_prefix(env):
    """The env's name in names of services: monit folds case, CBSD does not."""
    return re.sub("[A-Z]", lambda m: "=" + m.group().lower(), env)


def digest(text):
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def trusted(node, env, trust=None):
    """
    True if pillar wrote what lies in the env's directory, or nobody but root could have.

    ``trust`` is the content of trust.json, read if it is not given. The answer is about the very texts that
    ``env.files()`` returns, whatever lies there by now.
    """
    texts, roots = env.files()
    said = (files.read_json(node.in_state("trust.json"), {}) if trust is None else trust).get(env.name)
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

    def value(match):
        name = match.group(1).upper()
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

    return _FACT.sub(value, template)


class EnvText:
    """The text of one env as it would be published, and what it says to monit."""

    def __init__(self, node, env, template, facts, trusted, others=(), rank=()):
        self.env, self.rank = env, rank
        text = fill(template, facts)
        if any(ord(c) < 32 and c not in "\n\t\r" or ord(c) == 127 for c in text):
            raise EnvError("the text holds control characters")
        word = monit_.changes_the_node(text)
        if word:
            raise EnvError(f"`{word}` in the text of one env would change the whole node")
        if monit_.unbalanced(text):
            raise EnvError("unbalanced quotes")
        self.names = monit_.service_names(text)
        own = (env.lower(), service_prefix(env))
        for name in self.names:
            if name.lower() in ("all", "_status"):
                raise EnvError(f"a service must not be called {name}: monit takes it for a pattern or a page")
            if name == "cbsd_monit-look" or name.startswith("node-") and name.lower() not in own:
                raise EnvError(f"a service must not be called {name}: names of the node's own checks begin like that")
            owner = next((o for o in others if o != env and name.lower().startswith(service_prefix(o) + ".")), None)
            if owner:
                raise EnvError(f"a service of {env} must not be called {name}, which is a name of {owner}'s")
            if not trusted and name.lower() not in own and not name.startswith(own[1] + "."):
                raise EnvError(f"a service of {env} must be called {own[1]} or {own[1]}.…, not {name}")
        foreign = []
        for start, end, command in reversed(monit_.executed(text)):
            words = command.split()
            if words[:1] == [node.wake] and words[1:2] == ["monit"]:
                continue
            if words[:1] == [node.wake] and words[1:3] == ["probe", env]:
                continue
            if _restarts_itself(words, env):
                owner = monit_.service_names(text[:start])
                command = f"{node.wake} monit {(owner or [env])[-1]}"
                text = f'{text[:start]}"{command}"{text[end:]}'
                continue
            if not trusted:
                raise EnvError(f"it would run {command!r} as root{_UNTRUSTED}")
            foreign.append(command)
        word = None if trusted else monit_.unknown_word(text, {env, *self.names}, f"{node.wake} probe {env}")
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
        self.env, self.text, self.foreign, self.rank = env, part, [], rank
        self.names = monit_.service_names(part)


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
        # With `include: glob` monit reads `head` and the envs' own files, as the chapter has it; the generations are
        # made all the same, to be compared and tested.
        self.glob = node.conf.get("include") == "glob"

    def current(self):
        try:
            with open(self.link, encoding="utf-8", errors="surrogateescape") as handle:
                return handle.read()
        except OSError:
            return ""

    def _compose(self, texts):
        own = [t.text for t in texts]
        return "".join([f"# cbsd_monit: node {self.node.name}\n", self.head.rstrip() + "\n", *own])

    def _words(self, texts):
        """What monit says of these texts together with the operator's own monitrc; '' if they are good."""
        stage = os.path.join(self.folder, ".stage")
        files.write(stage, self._compose(texts))
        control = ""
        with contextlib.suppress(OSError), open(self.node.conf["monitrc"], encoding="utf-8") as handle:
            control = handle.read()
        kept = [
            line
            for line in control.splitlines()
            if not re.match(r"\s*include\s+\S*(/published|/head|/jails-system/\*/monit/monitrc)\"?\s*$", line)
        ]
        if not re.search(r"^\s*set\s+daemon", control, re.M):
            kept.append("set daemon 30")
        trial = os.path.join(self.folder, ".monitrc")
        files.write(trial, "\n".join([*kept, f"include {stage}", ""]))
        try:
            words = self.monit.test(trial)
        finally:
            files.remove(trial)
            files.remove(stage)
        return words.replace(stage, "published").replace(trial, self.node.conf["monitrc"])

    def _blamed(self, words, texts):
        """The env that monit's words blame, by line number."""
        found = re.search(r"published:(\d+)", words)
        lines = self._compose(texts).splitlines()[: int(found.group(1)) if found else 0]
        return next((x[len(MARK) :] for x in reversed(lines) if x.startswith(MARK)), None)

    def accept(self, texts):
        """
        Split ``texts`` into those that monit takes together and {env: monit's words} for the others.

        monit names a line, which can be the line after the culprit's last; so its word is a first guess, proved by
        leaving that env out, and halving finds what the guess does not.
        """
        bad = {}
        taken = {}
        fresh = []
        for text in sorted(texts, key=lambda t: (t.rank, t.env)):
            twin = next((taken[n.lower()] for n in text.names if n.lower() in taken), None)
            if twin:
                bad[text.env] = f"service name already used by {twin}"
                continue
            taken.update({n.lower(): text.env for n in text.names})
            fresh.append(text)
        fresh.sort(key=lambda t: t.env)

        def add(base, items, words=None):
            words = self._words(base + items) if words is None else words
            if not words:
                return base + items
            if len(items) == 1:
                bad[items[0].env] = words.splitlines()[0]
                return base
            order = [t.env for t in items]
            guess = self._blamed(words, base + items)
            if guess in order:
                at = order.index(guess)
                for suspect in (at, at - 1)[: 2 if at else 1]:
                    rest = items[:suspect] + items[suspect + 1 :]
                    if not self._words(base + rest):
                        bad[order[suspect]] = words.splitlines()[0]
                        return base + rest
            half = len(items) // 2
            return add(add(base, items[:half]), items[half:])

        words = self._words(fresh)
        if words and fresh:
            alone = self._words([])
            if alone:
                raise AgentError(f"monit does not accept the node's own control file: {alone.splitlines()[0]}")
            fresh = add([], fresh, words)
        elif words:
            raise AgentError(f"monit does not accept the node's own control file: {words.splitlines()[0]}")
        return fresh, bad

    def changed(self, texts):
        """The envs whose published text would change, and whether anything would."""
        new, old = self._compose(texts), self.current()
        return sorted(parts_of(new).items() ^ parts_of(old).items()), new != old

    def swap(self, texts):
        """Write a new generation and point ``published`` at it."""
        numbers = sorted(int(n) for n in os.listdir(self.folder) if n.isdigit())
        number = (numbers or [0])[-1] + 1
        files.write(os.path.join(self.folder, str(number)), self._compose(texts))
        self._point(number)
        for old in numbers[: 1 - KEEP]:
            files.remove(os.path.join(self.folder, str(old)))
        return number

    def _point(self, number):
        new = self.link + ".new"
        files.remove(new)
        os.symlink(os.path.join("generations", str(number)), new)
        os.replace(new, self.link)
        fd = os.open(self.node.state, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)

    def generation(self):
        try:
            return int(os.path.basename(os.readlink(self.link)))
        except (OSError, ValueError):
            return 0

    def back(self):
        """Point ``published`` at the generation before the present one."""
        numbers = sorted(int(n) for n in os.listdir(self.folder) if n.isdigit())
        older = [n for n in numbers if n < self.generation()]
        if older:
            self._point(older[-1])
        return bool(older)


def parts_of(text):
    """{env: its part} of a published text; the head is the part named ''."""
    parts = {}
    name = ""
    for line in text.splitlines():
        if line.startswith(MARK):
            name = line[len(MARK) :]
        parts[name] = parts.get(name, "") + line + "\n"
    return parts
