"""Files: whole or not at all, in batches or alone, and never through a planted link."""

import concurrent.futures
import errno
import os
import pathlib
import time

import files
import pytest

from .conftest import cases


@pytest.fixture
def calls(monkeypatch):
    """The syncs and renames in order, as (call, name)."""
    found = []

    def trace(call, name, real):
        def traced(*args, **where):
            found.append((call, os.path.basename(name(*args))))
            real(*args, **where)

        monkeypatch.setattr(os, call, traced)

    trace("fsync", lambda fd: os.readlink(f"/proc/self/fd/{fd}"), os.fsync)
    trace("replace", lambda old, new: new, os.replace)
    return found


@pytest.fixture
def env(tmp_path):
    """A directory of an env that only root can write, and its path."""
    path = tmp_path / "work/jails-system/lb1/monit"
    path.mkdir(parents=True)
    for folder in (path, *path.parents[:3]):
        folder.chmod(0o755)
    return files.EnvDir(str(path.parent)), path


@pytest.mark.parametrize("durable", [True, False])
def test_write_replaces_and_syncs_only_where_it_is_durable(tmp_path, calls, durable):
    path = tmp_path / "a"
    path.write_text("old")
    files.write(str(path), "n\udce9w", 0o604, durable=durable)
    assert path.read_bytes() == b"n\xe9w" and path.stat().st_mode & 0o777 == 0o604
    if durable:
        assert [call for call, _ in calls] == ["fsync", "replace", "fsync"]
        assert calls.pop() == ("fsync", tmp_path.name), "the directory, after the rename"
    assert calls[durable:] == [("replace", "a")]
    assert os.listdir(tmp_path) == ["a"]


def test_batch_writes_each_file_once_at_its_end_and_is_read_before(tmp_path, calls):
    path, other = str(tmp_path / "a"), str(tmp_path / "b")
    with files.batch(), files.batch():
        for number in range(3):
            files.write_json(path, number)
        files.write(other, "x")
        files.remove(other)
        assert files.read_json(path) == 2 and os.listdir(tmp_path) == []
        with concurrent.futures.ThreadPoolExecutor() as other_thread:
            other_thread.submit(files.write, str(tmp_path / "c"), "").result()
        assert os.listdir(tmp_path) == ["c"]
    assert files.read_json(path) == 2 and sorted(os.listdir(tmp_path)) == ["a", "c"]
    assert calls.count(("replace", "a")) == 1
    with files.batch():
        files.write(str(tmp_path / "late"), "x", late=True)
        files.write(str(tmp_path / "soon"), "x")
        files.flush(late=False)
        assert sorted(os.listdir(tmp_path)) == ["a", "c", "soon"]
        files.flush()
        assert sorted(os.listdir(tmp_path)) == ["a", "c", "late", "soon"]
    files.flush()  # in no batch there is nothing to do


def test_many_files_share_the_sync_of_their_directory(tmp_path, calls):
    with files.batch():
        for number in range(files.CHUNK + 5):
            files.write(str(tmp_path / str(number)), str(number))
    assert len(os.listdir(tmp_path)) == files.CHUNK + 5
    assert calls.count(("fsync", tmp_path.name)) == 2
    first = calls.index(("fsync", tmp_path.name))
    assert max(calls.index(("replace", str(n))) for n in range(files.CHUNK)) < first


def test_full_disk_is_reported_to_the_file_it_concerns(tmp_path, monkeypatch):
    put, failed = files._put, []

    def full(fd, data):
        put(fd, data[:3])
        if b"big" in data:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files, "_put", full)
    (tmp_path / "a").write_text("old")
    with files.batch():
        files.write(str(tmp_path / "a"), "big", failed=failed.append)
        files.write(str(tmp_path / "b"), "ok")
    assert [err.errno for err in failed] == [errno.ENOSPC]
    with pytest.raises(OSError, match="No space"), files.batch():
        files.write(str(tmp_path / "a"), "big")
        files.write(str(tmp_path / "c"), "ok")
    (tmp_path / "d").mkdir()
    with pytest.raises(IsADirectoryError):
        files.write(str(tmp_path / "d"), "")
    assert sorted(os.listdir(tmp_path)) == ["a", "b", "c", "d"], "no temporary file stays"
    assert (tmp_path / "a").read_text() == "old"


def test_link_is_swapped_durably_and_without_a_gap(tmp_path, calls):
    link = tmp_path / "published"
    for target in ("generations/1", "generations/2"):
        with files.batch():
            files.swap_link(str(link), target)
            assert os.readlink(link) == target
    assert calls == [("replace", "published"), ("fsync", tmp_path.name)] * 2
    assert os.listdir(tmp_path) == ["published"]


def test_touch_keeps_what_is_there_and_follows_no_link(tmp_path):
    (tmp_path / "old").write_text("kept")
    for name, text in (("new", ""), ("old", "kept")):
        files.touch(str(tmp_path / name))
        assert (tmp_path / name).read_text() == text
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError):
        files.touch(str(tmp_path / "link"))
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("text", [None, "", "{", "\udc80"])
def test_json_that_cannot_be_read_is_the_default(tmp_path, text):
    if text is not None:
        (tmp_path / "a").write_bytes(text.encode("utf-8", "surrogateescape"))
    assert files.read_json(str(tmp_path / "a"), [1]) == [1]


def test_tidy_takes_only_old_temporary_files(tmp_path):
    old = time.time() - files.STALE - 5
    for name in (".a.0123456789ab.new", ".b.0123456789ab.new", ".mine.new", "a.0123456789ab.new"):
        (tmp_path / name).write_text("")
        os.utime(tmp_path / name, None if name.startswith(".b") else (old, old))
    (tmp_path / ".l.0123456789ab.new").symlink_to("nowhere")
    os.utime(tmp_path / ".l.0123456789ab.new", (old, old), follow_symlinks=False)
    files.tidy(str(tmp_path))
    left = sorted(os.listdir(tmp_path))
    assert left == [".b.0123456789ab.new", ".mine.new", "a.0123456789ab.new"]


@pytest.mark.parametrize("plant", ["link", "fifo", "folder", "nothing"])
def test_env_dir_reads_regular_files_only(env, tmp_path, plant):
    folder, path = env
    (tmp_path / "secret").write_text("root:")
    (path / "long").write_bytes(b"a" * (files.LIMIT + 10))
    assert len(folder.read("long")) == files.LIMIT
    if plant == "link":
        (path / "x").symlink_to(tmp_path / "secret")
    elif plant != "nothing":
        (os.mkfifo if plant == "fifo" else os.mkdir)(path / "x")
    assert folder.read("x") is None and folder.load(["x"]) == ({"x": None}, True)
    if plant != "folder":
        folder.write("x", "mine")
        assert folder.read("x") == "mine" and not (path / "x").is_symlink()
        folder.remove("x")
        assert os.listdir(path) == ["long"]
    assert (tmp_path / "secret").read_text() == "root:"


def test_env_dir_behind_a_link_is_none_but_its_sysdir_may_be_one(env, tmp_path):
    folder, path = env
    (path / "x").write_text("mine")
    path.parent.rename(tmp_path / "zfs")
    path.parent.symlink_to(tmp_path / "zfs")
    assert folder.read("x") == "mine"
    (tmp_path / "zfs/monit").rename(tmp_path / "elsewhere")
    (tmp_path / "zfs/monit").symlink_to(tmp_path / "elsewhere")
    assert folder.read("x") is None and folder.load(["x"]) == ({"x": None}, False)
    with pytest.raises(OSError):
        folder.write("y", "lost")
    with files.batch():
        folder.write("y", "lost")  # no other file of the batch suffers
    folder.remove("x")
    assert os.listdir(tmp_path / "elsewhere") == ["x"]


@cases(
    ("part", "mode", "uid", "trusted"),
    ("", 0o755, 0, True),
    ("x", 0o600, 0, True),
    ("x", 0o620, 0, True),  # its group is wheel's 0
    ("x", 0o602, 0, False),
    ("x", 0o600, 65534, False),
    ("", 0o757, 0, False),
    ("", 0o755, 65534, False),
    ("..", 0o757, 0, False),
    ("../..", 0o755, 65534, False),
    ("../../..", 0o777, 65534, True),  # CBSD's workdir
)
def test_load_trusts_what_only_root_can_write(env, part, mode, uid, trusted):
    folder, path = env
    (path / "x").write_text("text")
    place = pathlib.Path(os.path.realpath(path / part))
    os.chmod(place, mode)
    if uid and os.geteuid() == 0:
        os.chown(place, uid, 0)
    elif uid:
        pytest.skip("only root can give files away")
    assert folder.load(["x", "y"]) == ({"x": "text", "y": None}, trusted)


def test_temporary_names_cannot_be_laid_out_in_advance(tmp_path, monkeypatch):
    seen = set()
    monkeypatch.setattr(files, "_put", lambda fd, _: seen.add(os.readlink(f"/proc/self/fd/{fd}")))
    for _ in range(5):
        files.write(str(tmp_path / "x"), "x", durable=False)
    assert len(seen) == 5
