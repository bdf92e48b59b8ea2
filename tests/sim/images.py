"""jexport and jimport: a jail as one file."""

import io
import json
import os
import shutil
import tarfile
import tempfile

from sim import jails
from sim.inventory import COLUMNS
from sim.layout import read


def jexport(session):
    """Pack row, system directory and data of a jail; a running one too."""
    keys = "compress dstdir genmd5 gensize header_extra imgname jexport_exclude jname ls"
    args = session.parse(optional=keys)
    layout = session.layout
    jname = args["jname"] or args.first()
    if not jname:
        session.fail("{N1}Give me jname{N0}")
    names = session.inventory.matching(jname, "jail") if "*" in jname else []
    for name in names:
        session.cbsd("jexport", f"jname={name}")
    if names:
        return
    row = session.existing(jname)
    if row["emulator"] == "bhyve" and row["jid"] != "0":
        session.fail("{N1}VM is online{N0}")
    directory = args["dstdir"] or layout.work("export")
    image = os.path.join(directory, f"{args['imgname'] or jname}.img")
    os.makedirs(directory, exist_ok=True)
    level = args["compress"] or "6"
    session.say(f"Exporting (with compress level:{{N2}}{level}{{N1}}), please stand by", jname)
    header = json.dumps({key: row[key] for key in COLUMNS}).encode()
    with tarfile.open(image, "w:gz", compresslevel=1) as archive:
        entry = tarfile.TarInfo("header.json")
        entry.size = len(header)
        archive.addfile(entry, io.BytesIO(header))
        archive.add(layout.system(jname), "sysdata")
        archive.add(layout.data(jname), "data")
    session.say("exported image file", image)
    session.done()


def jimport(session):
    """Unpack an image under its own or another name. Errors are printed, the exit code is 0."""
    args = session.parse(optional="jname list newjname newip path inter")
    layout = session.layout
    wanted = args["jname"] or args["path"] or args.first()
    candidates = (layout.work("import", f"{wanted}.img"), wanted)
    image = next(filter(os.path.isfile, candidates), None)
    if not image:
        session.fail("No such jail or image here", wanted, code=0)
    with tempfile.TemporaryDirectory(dir=layout.work("ftmp")) as unpacked:
        with tarfile.open(image) as archive:
            # `filter=` is younger than Debian 12's Python.
            archive.extraction_filter = lambda member, path: member
            archive.extractall(unpacked)
        row = json.loads(read(os.path.join(unpacked, "header.json")))
        jname = args["newjname"] or row["jname"]
        if session.inventory.load(jname) is not None:
            session.fail("Jail already exist", jname, code=0)
        if os.path.isdir(layout.data(jname)):
            text = f"Jail datadir for {jname} already exist. Please check and remove first"
            session.fail(text, layout.data(jname), code=0)
        jails.remove(layout.system(jname))
        shutil.move(os.path.join(unpacked, "sysdata"), layout.system(jname))
        shutil.move(os.path.join(unpacked, "data"), layout.data(jname))
    row.update(jails.paths_of(layout, jname), jname=jname, jid="0", status="0")
    if args["newip"]:
        dynamic = args["newip"].upper() == "DHCP"
        row["ip4_addr"] = session.inventory.lease() if dynamic else args["newip"]
        session.say("IP sets to", row["ip4_addr"])
    session.inventory.register(row)
    for directory in (layout.work("jails", jname), layout.work("jails-fstab", jname)):
        os.makedirs(directory, exist_ok=True)
    session.done()
