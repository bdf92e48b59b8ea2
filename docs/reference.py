"""Write ``docs/pillar.md`` from the tables of ``cbsd_monit_schema``: run this when one changed."""

import importlib.util
import pathlib

DOCS = pathlib.Path(__file__).resolve().parent
SPEC = importlib.util.spec_from_file_location(
    "cbsd_monit_schema", DOCS.parent / "_modules/cbsd_monit_schema.py"
)
SCHEMA = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(SCHEMA)

HEAD = """\
# Pillar reference

Made from the schema by `docs/reference.py`; a test compares them. `pillar.example` shows the same
in use, and `salt-call cbsd_monit.explain ENV text=True` what it means for one env.

The setting nearest to a check wins: defaults, node, groups in the order of their names, env, check;
the profiles of a group or an env come just before it. Mappings are merged, everything else is
replaced. A check with the name of an inherited one changes it, unless it names another `type`:
then it replaces it; `false` removes it.

## Who does what

monit detects; the agent decides and acts. monit's counts begin anew when it reloads; the agent's
survive everything.
"""
CHECKS = """
## Checks

Each check has a `type`, the keys of its type, and those of [policy](#policy) except `heal`.
"""
PROTOCOLS = """
### monit's own protocol tests

For an env or a node: the server gives monit the right answer. Besides `port` they take `address`,
and those that are always over TCP also `tls`, `verify` and `certificate_valid`, as `http` does. The
first transport is the default.
"""
CONTAINERS = ("section", "map", "list")
KEYS = ["key", "holds", "default", "meaning"]


def reference():
    """Return the pillar reference as Markdown."""
    parts = [HEAD, _markdown(["key", "default", "meaning", "monit", "agent"], _who())]
    for name, rows in SCHEMA.SECTIONS.items():
        parts += [f"\n## {name}\n", _markdown(KEYS, _keys(rows))]
    parts.append(CHECKS)
    for name, kind in SCHEMA.CHECKS.items():
        if name in SCHEMA.PROTOCOLS:
            continue
        owner = {"env": "an env", "node": "a node"}
        scope = "a jail" if "only" in kind else " or ".join(owner[scope] for scope in kind["scope"])
        parts.append(f"\n### {name}\n\nFor {scope}: {kind['doc']}.")
        if kind["fields"]:
            parts += ["", _markdown(KEYS, _keys(kind["fields"]))]
    types = ((n, what) for n, what in sorted(SCHEMA.TYPES.items()) if n not in CONTAINERS)
    parts += [
        PROTOCOLS,
        _markdown(["type", "`port`", "`transport`"], map(_protocol, SCHEMA.PROTOCOLS)),
        "\n## Values\n",
        _markdown(["holds", "written as"], types),
    ]
    return "\n".join(parts) + "\n"


def _who():
    groups = [
        ("", SCHEMA.POLICY),
        ("restart:", SCHEMA.SECTIONS["restart"]),
        ("", SCHEMA.SECTIONS["env"]),
        ("budget:", SCHEMA.SECTIONS["budget"]),
    ]
    found = {
        f"{above}{key}": row
        for above, rows in groups
        for key, row in rows.items()
        if "agent" in row
    }
    for key, row in found.items():
        yield [f"`{key}`", _default(row), row["doc"], row["monit"] or "–", row["agent"] or "–"]


def _keys(rows):
    for key, row in rows.items():
        yield [
            f"`{key}`" + " *" * bool(row.get("required")),
            _holds(row),
            _default(row),
            row["doc"],
        ]


def _holds(row):
    kind = row["type"]
    if kind == "choice":
        return ", ".join(f"`{choice}`" for choice in row["choices"])
    if kind in CONTAINERS:
        of = f"[{row['of']}](#{row['of']})" if row["of"] in SCHEMA.SECTIONS else row["of"]
        return {"section": of, "map": f"{row.get('keys')}: {of}", "list": f"list of {of}"}[kind]
    if kind == "checks":
        return "[checks](#checks) by name"
    limits = [row.get("min"), row.get("max")]
    if limits == [None, None]:
        return kind
    unit = row.get("unit", "")
    low, high = ("" if limit is None else f"{limit}{unit}" for limit in limits)
    return f"{kind}, {low or 0} – {high}" if high else f"{kind}, from {low}"


def _default(row):
    value = row["default"]
    if value is None:
        return ""
    if isinstance(value, bool):
        return "`true`" if value else "`false`"
    return f"`{' '.join(value)}`" if isinstance(value, list) and value else f"`{value}`"


def _protocol(name):
    fields = SCHEMA.CHECKS[name]["fields"]
    over = _holds(fields["transport"]) if "transport" in fields else "always TCP"
    tls = " with TLS" if fields.get("tls", {}).get("default") else ""
    return [f"`{name}`", _default(fields["port"]) or "to be given", over + tls]


def _markdown(heads, rows):
    cells = [[str(cell).replace("|", "\\|") for cell in row] for row in rows]
    rule = "|" + "---|" * len(heads)
    return "\n".join([f"| {' | '.join(heads)} |", rule, *(f"| {' | '.join(r)} |" for r in cells)])


if __name__ == "__main__":
    (DOCS / "pillar.md").write_text(reference())
