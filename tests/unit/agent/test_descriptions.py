"""Monit's words on a service, as `wake` kept them and as an operator reads them."""

import os
import subprocess

import descriptions

from .conftest import cases

HTTP = "failed protocol test [HTTP] at [127.0.0.1]:18080/ [TCP/IP] -- "
TLS = "failed protocol test [DEFAULT] at [127.0.0.1]:443 [TCP/IP TLS] -- "


@cases(
    ("said", "plain"),  # by monit 5.33.0
    (HTTP + "HTTP error: Server returned status 500", "HTTP 500"),
    (HTTP + "HTTP error: Regular expression doesn't match: No match", "content does not match"),
    (HTTP + "HTTP: Error receiving data -- Resource temporarily unavailable", "no answer in time"),
    (HTTP + "Connection refused", "connection refused"),
    (HTTP + "No route to host", "no route to host"),
    (
        "certificate expiry in 18 days matches check limit [valid > 30 days]",
        "certificate expires in 18 days",
    ),
    (
        TLS + "SSL server certificate verification error: self signed certificate is not allowed",
        "SSL server certificate verification error: self signed certificate is not allowed",
    ),
    (
        "failed protocol test [DEFAULT] at /run/db.sock -- Cannot create unix socket for /run/db",
        "Cannot create unix socket for /run/db",
    ),
    ("ping test failed", "ping test failed"),
    (
        "space usage 91.0% matches resource limit [space usage > 90.0%]",
        "space usage is 91.0% (> 90.0%)",
    ),
    (
        "cpu usage of 99.0% matches resource limit [cpu usage > 80.0%]",
        "cpu usage is 99.0% (> 80.0%)",
    ),
    ("status failed (1) -- it is broken", "status failed (1) -- it is broken"),
    ("554 go \x1b[31m away\r\n \u202e now", "554 go [31m away now"),
    ("x" * 999, "x" * descriptions.LONGEST),
    ("", ""),
)
def test_monits_words_become_short_printable_ones(said, plain):
    assert descriptions.plain(said) == plain


@cases("name", "lb1.http", "", "=l=b1.web", "x" * 300)
def test_number_is_that_of_cksum(name):
    done = subprocess.run(["cksum"], input=name.encode(), capture_output=True, check=True)
    assert str(descriptions.cksum(name.encode())) == done.stdout.decode().split()[0]


def test_wake_keeps_the_last_words_on_each_service_bounded(wake, node, tmp_path):
    """As monit runs it: what it says is in the environment."""

    def said(service, event, words):
        monit = {"MONIT_SERVICE": service, "MONIT_EVENT": event, "MONIT_DESCRIPTION": words}
        argv = [wake, "monit", service]
        subprocess.run(argv, env={**os.environ, **monit}, check=True, timeout=20)

    said("lb1.http", "Connection failed", HTTP + "Connection refused")
    said("lb1.smtp", "Connection failed", "554 " + "x" * 5000)
    assert descriptions.last(node, "lb1.http") == "connection refused"
    assert descriptions.last(node, "lb1.smtp").startswith("554 xxx")
    folder = tmp_path / "run/words"
    assert sum(path.stat().st_size for path in folder.iterdir()) < 2000
    said("lb1.http", "Connection succeeded", "connection succeeded")
    assert descriptions.last(node, "lb1.http") == "", "it does not fail now"
    descriptions.tidy(node, ["lb1.smtp"])
    assert [path.name for path in folder.iterdir()] == [str(descriptions.cksum(b"lb1.smtp"))]
    assert (descriptions.last(node, "lb1.http"), descriptions.last(node, "none")) == ("", "")


def test_words_are_followed_through_no_link(node, tmp_path):
    folder = tmp_path / "run/words"
    folder.mkdir()
    (tmp_path / "secret").write_text("lb1.http\nx failed\nsecret\n")
    (folder / str(descriptions.cksum(b"lb1.http"))).symlink_to(tmp_path / "secret")
    assert descriptions.last(node, "lb1.http") == ""
