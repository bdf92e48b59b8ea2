"""
monit's control language, as much as has to be read to know what a text would run.

As in monit's own lexer, `#` begins a comment only where a word could begin, and punctuation
separates words.
"""

import re

# Compiled at first use: `look` needs neither.
_TOKEN = r"""\#[^\n]*|"[^"]*"|'[^']*'|[^\s"'=;:(),{}]+|[=;:(),{}]"""
_VALUE = r"[0-9A-Fa-f.:]+\Z|[<>!]+\Z|[=,:{}]\Z"
# The only words that may stand in a text which neither pillar wrote nor only root could have.
_HARMLESS = set(
    """and address alert allow as certificate check checksum content count cycle cycles days default
    depends else every exec exist exists expect failed file for get head host hostheader http https
    if ip ipv4 ipv6 is laststate md5 method not on onreboot option options or path ping ping4 ping6
    port post protocol proto repeat request responsetime retry second seconds selfsigned send sha1
    size ssl status succeeded tcp then time timeout times tls type udp url using valid verify with
    within enable disable reject nostart group does
    apache-status clamav dns ftp gps imap imaps ldap2 ldap3 lmtp memcache mongodb mqtt mysql mysqls
    nntp ntp3 pgsql pop pops rdate redis rsync sieve sip smtp smtps spamassassin ssh tns
    websocket""".split()
)


def tokens(text):
    """The words, quoted strings and punctuation of ``text`` as matches, without the comments."""
    return [m for m in re.finditer(_TOKEN, text) if not m.group().startswith("#")]


def unbalanced(text):
    """True if a quote is left open."""
    return bool(re.sub(_TOKEN, "", text).strip())


def unquote(word):
    return word[1:-1] if len(word) > 1 and word[0] in "\"'" and word[-1] == word[0] else word


def service_names(text):
    """The names of the services that ``text`` defines."""
    words = [m.group() for m in tokens(text)]
    return [unquote(words[i + 2]) for i, w in enumerate(words[:-2]) if w.lower() == "check"]


def executed(text):
    """
    Find the commands that ``text`` lets monit run: [(start, end, command)].

    They stand behind exec, start, stop, restart and check program.
    """
    found, words = [], tokens(text)
    lower = [m.group().lower() for m in words]
    for i, word in enumerate(lower):
        at = i + 1
        if word in ("exec", "execute"):
            pass
        elif re.fullmatch(r"(start|stop|restart)(program)?", word):
            while at < len(words) and lower[at] in ("program", "="):
                at += 1
            if at < len(words) and lower[at][0] not in "\"'/":
                continue  # `then restart`, `then stop`
        elif word == "path" and "program" in lower[max(0, i - 4) : i]:
            pass
        else:
            continue
        if at < len(words) and lower[at] == "=":
            at += 1
        if at < len(words):
            found.append((words[at].start(), words[at].end(), unquote(words[at].group())))
    return found


def waking(text, wake):
    """
    ``text`` whose services tell the agent when they fail: `alert` and `unmonitor` become an `exec`
    of ``wake``, and so does a `stop` that has no program and would only unmonitor.

    monit alerts whatever the action is (5.33, handle_action in event.c), and goes on watching.
    """
    words = tokens(text)
    lower = [match.group().lower() for match in words]
    services = [at + 2 for at, word in enumerate(lower[:-2]) if word == "check"]
    for service, end in reversed(list(zip(services, [*services[1:], len(words)]))):
        stops = any(lower[at : at + 2] == ["stop", "program"] for at in range(service, end))
        name = unquote(words[service].group())
        for at in reversed(range(service, end - 1)):
            quiet = lower[at + 1] in ("alert", "unmonitor") or lower[at + 1] == "stop" and not stops
            if lower[at] == "then" and quiet:
                match = words[at + 1]
                text = f'{text[: match.start()]}exec "{wake} monit {name}"{text[match.end() :]}'
    return text


def changes_the_node(text):
    """The first word of ``text`` that reaches beyond its services (`set`, `include`), or None."""
    words = (match.group() for match in tokens(text))
    return next((word for word in words if word.lower() in ("set", "include")), None)


def unknown_word(text, own, probe):
    """
    The first word of ``text`` that is not known to be harmless, or None.

    ``own`` are names the text may use; a `check program` may run what begins with ``probe``.
    """
    words = [match.group() for match in tokens(text)]
    for at, word in enumerate(words):
        if word.lower() == "program" and words[at - 1].lower() == "check":
            rest = [w for w in words[at + 2 : at + 5] if w.lower() != "with"]
            if len(rest) > 1 and rest[0].lower() == "path" and rest[1].startswith(f'"{probe} '):
                continue
        if word[0] == '"' or word.lower() in _HARMLESS or re.match(_VALUE, word) or word in own:
            continue
        return word
    return None
