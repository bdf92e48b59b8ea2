"""What CBSD's shell does to arguments and values (subr/nc.subr `init`, subr/sudoexec.subr).

Values are split at `~`, lose their double quotes, are globbed, and then evaluated: `$(...)` in a
value runs as root. None of that may be "fixed" here; it is what the callers of cbsd must survive.
"""

import sys

from sim import programs

EMPTY_DIR = "/var/empty"


class Exit(Exception):
    """The command ends with this exit code."""


def expand(word):
    """Pathname expansion; the working directory is empty, so only absolute patterns match."""
    if word.startswith("/") and not set(word).isdisjoint("*?["):
        import glob  # few commands need it, and `re`

        return sorted(glob.glob(word)) or [word]
    return [word]


def evaluate(value, environment):
    """`eval "X=\\"VALUE\\""`: parameters and commands in a value are substituted."""
    if set(value).isdisjoint("$`\\"):
        return value
    script = ["/bin/sh", "-c", f'x="{value}"\nprintf %s "$x"']
    code, text = programs.output(script, env=environment, stdin=programs.DEVNULL)
    if code == 2:  # a syntax error ends the whole shell
        raise Exit(2)
    return text.decode(errors="surrogateescape")


def printf(value):
    """`printf "VALUE "` without arguments: `%` and backslashes in a value are interpreted."""
    if set(value).isdisjoint("%\\"):
        return value
    script = ["/bin/sh", "-c", 'printf "$1 "', "sh", value]
    text = programs.output(script, stdin=programs.DEVNULL)[1]
    return text.decode(errors="surrogateescape").removesuffix(" ")


def fields(arguments):
    """The arguments as `for i in $*` sees them with IFS=~."""
    for argument in arguments:
        parts = argument.split("~")
        if len(parts) > 1 and not parts[-1]:
            parts.pop()
        for part in parts:
            yield from expand(part)


def tokens(arguments):
    """(key, value) or (None, word) for each argument.

    An unclosed quote swallows the next arguments: the value grows, and is yielded again each time.
    """
    key, collected, opened = None, [], False
    for field in fields(arguments):
        equals = 0
        if not opened:
            equals = field.find("=")
            if equals <= 0:
                yield None, field
                continue
            key = field[:equals]
        closed = False
        quote = field.find('"') + 1
        if field.endswith('"'):
            opened, closed = quote != len(field), True
        elif quote > 1:
            opened = True
        value = field[equals + 1 :] if equals else field
        value = " ".join(expand(value)).rstrip("\n").replace('"', "")
        if opened or closed:
            collected.append(value)
            value = " ".join(collected)
        if closed:
            collected, opened = [], False
        yield key, value


def requote(arguments):
    """What a wrapper in sudoexec/ hands to the real script: split again at blanks."""
    text = " ".join(word if key is None else f'{key}="{word}"' for key, word in tokens(arguments))
    return [name for word in text.split() for name in expand(word)]


class Arguments:
    """The arguments of one command after CBSD's parser.

    `raw` is `$@`, `words` are the bare words; `given` holds the declared keys that have a value,
    be it from the command line or inherited from the environment, which CBSD never clears.
    """

    def __init__(self, raw, declared, environment, reset):
        self.raw, self.given, self.words = raw, {}, []
        for key in declared:
            value = reset.get(key, environment.get(key, ""))
            self.given[key] = environment.get(f"H_CBSD_{key}") or value
        for key, value in tokens(raw):
            if key is None:
                self.words.append(value)
            elif key in self.given:
                # Variables that were set by earlier arguments can be used in later ones.
                self.given[key] = evaluate(value, {**environment, **self.given})

    def __getitem__(self, key):
        return self.given.get(key, "")

    def first(self):
        return self.raw[0] if self.raw else ""


def column(rows):
    """`column -t`: cells are words, columns are two blanks apart, the last cell is not padded."""
    table = [[escape(cell) for cell in row.split()] for row in rows]
    table = [row for row in table if row]
    widths = [0] * max(map(len, table), default=0)
    for row in table:
        for index, cell in enumerate(row):
            widths[index] = max(widths[index], width(cell))
    lines = []
    for row in table:
        padded = [cell + " " * (widths[i] + 2 - width(cell)) for i, cell in enumerate(row[:-1])]
        lines.append("".join(padded) + row[-1] + "\n")
    return "".join(lines)


def width(cell):
    """The width that column(1) sees: of an escape sequence only ESC itself does not count."""
    return len(cell.replace("\033", ""))


def escape(cell):
    """column(1) in the C locale shows other than ASCII bytes as escapes."""
    raw = cell.encode(sys.getfilesystemencoding(), "surrogateescape")
    return "".join(chr(byte) if byte < 128 else f"\\x{byte:02x}" for byte in raw)
