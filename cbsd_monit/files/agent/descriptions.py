"""
Monit's last words on a service, as `wake` kept them, made short.

For checks of hosts monit's XML says neither "connection refused" nor "status 500"; what it gives to
the program of an `exec` does.
"""

import re

import files

LONGEST = 200  # characters of a reason
_READ = 1000  # bytes: `wake` writes fewer
_PREFIX = re.compile(r"failed protocol test \[[^\]]*\] at \S+ (?:\[[^\]]*\] )?-- ")
_PLAIN = [
    (re.compile(r"Server returned status (\d+)"), r"HTTP \1"),
    (re.compile(r"Regular expression doesn't match"), "content does not match"),
    (re.compile(r"certificate expiry in (\d+) days?"), r"certificate expires in \1 days"),
    (re.compile(r"Connection refused"), "connection refused"),
    (
        re.compile(r"Resource temporarily unavailable|timed out|Operation now in progress"),
        "no answer in time",
    ),
    (re.compile(r"No route to host"), "no route to host"),
    (
        re.compile(r"(.+?) (?:of )?(\S+) matches resource limit \[.*?([<>=!]+ \S+)\]"),
        r"\1 is \2 (\3)",
    ),
]


def last(node, service):
    """Why monit found ``service`` failing when it last said so; '' if that is not known."""
    path = node.in_run("words", str(cksum(service.encode())))
    name, _, rest = (files.read_head(path, _READ) or "").partition("\n")
    event, _, description = rest.partition("\n")
    if name != service or "succeeded" in event:
        return ""
    return plain(description)


def plain(description):
    """What an operator wants to read of monit's ``description``; one printable line."""
    text = "".join(c if c.isprintable() else " " for c in description)
    text = " ".join(_PREFIX.sub("", text).split())
    for pattern, words in _PLAIN:
        match = pattern.search(text)
        if match:
            return match.expand(words)[:LONGEST]
    return text[:LONGEST]


def tidy(node, services):
    """Forget the words on services other than ``services``."""
    files.keep_only(node.in_run("words"), {str(cksum(name.encode())) for name in services})


def cksum(data):
    """The number that cksum(1) prints for ``data``, a CRC that no module of Python has."""
    size, crc = len(data), 0
    while size:
        data, size = data + bytes([size & 255]), size >> 8
    for byte in data:
        crc ^= byte << 24
        for _ in range(8):
            crc = (crc << 1 ^ 0x104C11DB7) if crc & 0x80000000 else crc << 1
    return crc ^ 0xFFFFFFFF
