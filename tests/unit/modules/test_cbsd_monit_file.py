"""A file is replaced whole or not at all, and nothing is written through a symlink."""

import os
import stat

import pytest

from tests.unit.loaded import modules


@pytest.fixture
def files():
    return modules("cbsd_monit_file")["cbsd_monit_file.tools"]()


def test_a_file_is_replaced_and_nothing_else_is_left(files, tmp_path):
    path = tmp_path / "f"
    (tmp_path / files.temporary("f")).symlink_to(tmp_path / "victim")
    for content, text in (("a\udcff", b"a\xff"), (b"\0b", b"\0b")):
        files.write(str(path), content)
        assert path.read_bytes() == text and stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["f"]


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_nothing_beside_it(files, tmp_path, monkeypatch, call):
    def full(*_, **__):
        raise OSError(28, "full")

    files.write(str(tmp_path / "f"), "old")
    monkeypatch.setattr(os, call, full)
    with pytest.raises(OSError, match="full"):
        files.write(str(tmp_path / "f"), "new")
    assert os.listdir(tmp_path) == ["f"] and (tmp_path / "f").read_text() == "old"


def test_only_a_regular_file_is_read_and_no_symlink_below_a_directory(files, tmp_path):
    (tmp_path / "f").write_bytes(b"a\r\n\xff")
    (tmp_path / "link").symlink_to("f")
    os.mkfifo(tmp_path / "pipe")
    folder = os.open(tmp_path, os.O_RDONLY)
    try:
        assert files.read("f", folder) == files.read(str(tmp_path / "link")) == "a\r\n\udcff"
        found = [files.read(name, folder) for name in ("link", "pipe", "missing")]
    finally:
        os.close(folder)
    assert found == [None] * 3
    files.tidy(str(tmp_path / "missing/f"))
