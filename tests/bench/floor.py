"""
The floor that `make bench` compares with: plain Python that writes the same bytes with the same durability, one ``monit -t``, one
reload; nothing is computed, validated, compared or reported.

    python floor.py MANIFEST

MANIFEST (JSON, made by ``manifest``): ``{"files": {path: [text, mode, durable]}, "links": {path: target}, "test": argv, "reload": argv}``; the
directories of the files exist or are made. Prints the seconds it took, reading the manifest not among them. Durable is a file
that was fsync'ed before its rename, and its directory after: all temporary files are written first, then synced by eight threads, so
that one commit of the file system's journal serves many (what the formula does as well, `agent/files.py`).
"""

import concurrent.futures
import json
import os
import stat
import subprocess
import sys
import time


def manifest(root, before, durable, test, reload, target=None):
    """
    What is below ``root`` and not in ``before`` (a set of paths), as a manifest with ``root`` replaced by ``target``.

    durable
        A function that says of a path below ``root`` whether its writer synced it.
    test, reload
        The two commands of monit.
    """
    files, links = {}, {}
    target = target or root
    for top, _, names in os.walk(root):
        for name in names:
            path = os.path.join(top, name)
            if path in before:
                continue
            info = os.lstat(path)
            to = target + path[len(root) :]
            if stat.S_ISLNK(info.st_mode):
                links[to] = os.readlink(path)
            elif stat.S_ISREG(info.st_mode):
                with open(path, encoding="utf-8", errors="surrogateescape") as stream:
                    files[to] = [stream.read(), stat.S_IMODE(info.st_mode), durable(path)]
    return {"files": files, "links": links, "test": test, "reload": reload}


def run(said):
    """Write what the manifest ``said`` holds; returns how many files and bytes."""
    folders = {os.path.dirname(path) for path in (*said["files"], *said["links"])}
    for folder in sorted(folders):
        os.makedirs(folder, 0o700, exist_ok=True)
    size, durable = 0, []
    for path, (text, mode, sync) in said["files"].items():
        data = text.encode("utf-8", "surrogateescape")
        size += len(data)
        handle = os.open(path + ".new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        os.write(handle, data)
        os.close(handle)
        if sync:
            durable.append(path)

    def settle(path):
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(settle, [path + ".new" for path in durable]))
        for path in said["files"]:
            os.replace(path + ".new", path)
        list(pool.map(settle, sorted({os.path.dirname(path) for path in durable})))
    for path, target in said["links"].items():
        os.symlink(target, path)
    for argv in (said["test"], said["reload"]):
        subprocess.run(argv, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    return len(said["files"]), size


def main(path):
    with open(path, encoding="utf-8") as stream:
        said = json.load(stream)
    began = time.perf_counter()
    count, size = run(said)
    print(json.dumps({"seconds": time.perf_counter() - began, "files": count, "bytes": size}))


if __name__ == "__main__":
    main(sys.argv[1])
