"""jexport and jimport: a jail as one file."""

import io
import json
import os
import shutil
import tarfile
import tempfile

from sim import jails
from sim.inventory import COLUMNS


def jexport(session):
    """Pack row, system directory and data of a jail; a running one too."""
    optional = "compress dstdir genmd5 gensize header_extra imgname jexport_exclude jname ls"
    args = session.parse(optional=optional)
    layout = session.layout
    jname = args["jname"] or args.first()
    if not jname:
        session.fail("{N1}Give me jname{N0}")
    names = session.inventory.matching(jname, "jail") if "*" in jname else []
    for name in names:
        session.cbsd("jexport", f"jname={name}")
    if names:
        return 0
    row = session.load(jname)
    if not row:
        session.fail(f"{{N1}}No such jail: {{N2}}{jname}{{N0}}")
    if row["emulator"] == "bhyve" and row["jid"] != "0":
        session.fail("{N1}VM is online{N0}")
    directory = args["dstdir"] or layout.work("export")
    image = os.path.join(directory, f"{args['imgname'] or jname}.img")
    os.makedirs(directory, exist_ok=True)
    level = args["compress"] or "6"
    text = f"{{N1}}Exporting (with compress level:{{N2}}{level}{{N1}}), please stand by"
    session.say(f"{text}: {{N2}}{jname}{{N0}}")
    header = json.dumps({key: row[key] for key in COLUMNS}).encode()
    with tarfile.open(image, "w:gz", compresslevel=1) as archive:
        entry = tarfile.TarInfo("header.json")
        entry.size = len(header)
        archive.addfile(entry, io.BytesIO(header))
        archive.add(layout.system(jname), "sysdata")
        archive.add(layout.data(jname), "data")
    session.say(f"{{N1}}exported image file: {{N2}}{image}{{N0}}")
    session.done()
    return 0


def jimport(session):
    """Unpack an image under its own or another name. Errors are printed, the exit code is 0."""
    args = session.parse(optional="jname list newjname newip path inter")
    layout = session.layout
    wanted = args["jname"] or args["path"] or args.first()
    image = next(
        (path for path in (layout.work("import", f"{wanted}.img"), wanted) if os.path.isfile(path)),
        None,
    )
    if not image:
        session.fail(f"{{N1}}No such jail or image here: {{N2}}{wanted}{{N0}}", 0)
    with tempfile.TemporaryDirectory(dir=layout.work("ftmp")) as unpacked:
        with tarfile.open(image) as archive:
            archive.extraction_filter = lambda member, path: (
                member
            )  # `filter=` is younger than Debian 12's Python
            archive.extractall(unpacked)
        with open(os.path.join(unpacked, "header.json"), encoding="utf-8") as header:
            row = json.load(header)
        jname = args["newjname"] or row["jname"]
        if session.inventory.load(jname) is not None:
            session.fail(f"{{N1}}Jail already exist: {{N2}}{jname}{{N0}}", 0)
        if os.path.isdir(layout.data(jname)):
            text = f"Jail datadir for {jname} already exist. Please check and remove first"
            session.fail(f"{{N1}}{text}: {{N2}}{layout.data(jname)}{{N0}}", 0)
        jails.remove(layout.system(jname))
        shutil.move(os.path.join(unpacked, "sysdata"), layout.system(jname))
        shutil.move(os.path.join(unpacked, "data"), layout.data(jname))
    row.update(jails.paths_of(layout, jname), jname=jname, jid="0", status="0")
    if args["newip"]:
        row["ip4_addr"] = (
            session.inventory.lease() if args["newip"].upper() == "DHCP" else args["newip"]
        )
        session.say(f"{{N1}}IP sets to: {{N2}}{row['ip4_addr']}{{N0}}")
    session.inventory.register(row)
    for directory in (layout.work("jails", jname), layout.work("jails-fstab", jname)):
        os.makedirs(directory, exist_ok=True)
    session.done()
    return 0
