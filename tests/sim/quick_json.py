"""`json` without its Python half: importing that costs as much as a simulated command does."""

from _json import encode_basestring_ascii, make_encoder, make_scanner


class _Plain:
    """What the scanner asks of its decoder; the texts are our own."""

    strict, object_hook, object_pairs_hook = True, None, None
    parse_float, parse_int, parse_constant = float, int, float
    memo = {}


def _refuse(value):
    raise TypeError(f"{type(value).__name__} has no form in JSON")


_encode = make_encoder(None, _refuse, encode_basestring_ascii, None, ": ", ", ", False, False, True)
_scan = make_scanner(_Plain)


def dumps(value):
    """The text of plain data, as `json.dumps` writes it."""
    return "".join(_encode(value, 0))


def loads(text):
    """The data of a text that `dumps` wrote; ValueError if it is none."""
    try:
        return _scan(text, 0)[0]
    except StopIteration:
        raise ValueError(f"no JSON: {text[:40]!r}") from None
