"""
Write the same bytes as the formula with the same durability, and nothing else: the lower bound.

    python floor.py MANIFEST

Computes, validates, compares and reports nothing; runs one ``monit -t`` and one reload, and prints
the seconds this took. MANIFEST is JSON, made by ``manifest``: ``{"files": {path: [text, mode,
durable]}, "links": {path: target}, "test": argv, "reload": argv}``; missing directories are made.
A durable file is fsync'ed before its rename, and its directory after. As in `agent/files.py`, all
temporary files are written first and then synced by eight threads, so that one commit of the file
system's journal serves many.
"""

import concurrent.futures
import json
import os
import stat
import subprocess
import sys
import time


def manifest(root, before, durable, test, reload):
    """
    Return a manifest of all below ``root`` but what is in ``before``.

    ``durable`` says of a path whether its writer synced it; ``test`` and ``reload`` are the two
    commands of monit.
    """
    files, links = {}, {}
    for top, _, names in os.walk(root):
        for name in names:
            path = os.path.join(top, name)
            if path in before:
                continue
            info = os.lstat(path)
            if stat.S_ISLNK(info.st_mode):
                links[path] = os.readlink(path)
            elif stat.S_ISREG(info.st_mode):
                with open(path, encoding="utf-8", errors="surrogateescape") as stream:
                    files[path] = [stream.read(), stat.S_IMODE(info.st_mode), durable(path)]
    return {"files": files, "links": links, "test": test, "reload": reload}


def run(content):
    """Write what a manifest holds; returns how many files and bytes."""
    folders = {os.path.dirname(path) for path in (*content["files"], *content["links"])}
    for folder in sorted(folders):
        os.makedirs(folder, 0o700, exist_ok=True)
    size, durable = 0, []
    for path, (text, mode, sync) in content["files"].items():
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
        for path in content["files"]:
            os.replace(path + ".new", path)
        list(pool.map(settle, sorted({os.path.dirname(path) for path in durable})))
    for path, target in content["links"].items():
        os.symlink(target, path)
    for argv in (content["test"], content["reload"]):
        subprocess.run(argv, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    return len(content["files"]), size


def main(path):
    with open(path, encoding="utf-8") as stream:
        content = json.load(stream)
    began = time.perf_counter()
    count, size = run(content)
    print(json.dumps({"seconds": time.perf_counter() - began, "files": count, "bytes": size}))


if __name__ == "__main__":
    main(sys.argv[1])
