#!/usr/bin/python3
"""Raksha's libvirt hook: refuses to start a VM below an overlay that holds newer data.

libvirt runs it with the VM's name, operation and step as arguments and the definition on its input, before anything of
the VM is there. It asks nobody but the journal and the files: a hook that called libvirt would wait for itself. What it
cannot read does not keep a VM from starting; it is told to the system's log.
"""

from __future__ import annotations

import os
import sqlite3
import struct
import sys
import syslog
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

#: replaced by the path of the journal when it is installed
PLACE = "@JOURNAL@"

#: seconds to wait for a journal that is being written
_PATIENCE = 2
_MOST_ENTRIES = 4 * 1024 * 1024
_ADVICE = (
    "`raksha local recover VM` makes its definition name the overlay again, `raksha local release VM` merges it for "
    "good; without the overlay file the VM starts, and what it wrote last is lost"
)


def main(arguments: list[str], journal: str) -> int:
    """The exit status: 1 keeps libvirt from going on."""
    if arguments[1:3] != ["prepare", "begin"]:
        return 0
    try:
        below = list(started_below(sys.stdin.read(), overlays(journal)))
    except (OSError, sqlite3.Error, ElementTree.ParseError, ValueError, struct.error) as error:
        syslog.syslog(syslog.LOG_WARNING, f"raksha: start of {arguments[0]} was not checked: {error}")
        return 0
    for disk, path, overlay in below:
        print(f"Raksha: disk {disk} would start on {path}, but newer data is in {overlay}. {_ADVICE}.", file=sys.stderr)
    return 1 if below else 0


def overlays(journal: str) -> list[tuple[str, str]]:
    """Overlays in use, each with the VM's own file. One that was merged, or already left behind, does not count."""
    connection = sqlite3.connect(f"file:{journal}?mode=ro", uri=True, timeout=_PATIENCE)
    try:
        query = "SELECT path, base_path FROM layers WHERE state IN ('planned', 'chained') ORDER BY id"
        return [(str(path), str(base)) for path, base in connection.execute(query)]
    finally:
        connection.close()


def started_below(definition: str, known: list[tuple[str, str]]) -> Iterator[tuple[str, str, str]]:
    """Disk, file and overlay, for each disk of the definition that an overlay with data stands on."""
    standing = [(overlay, _file(base), _file(backing_of(overlay))) for overlay, base in known if holds_data(overlay)]
    root = ElementTree.fromstring(definition)  # noqa: S314 -- libvirt wrote it, and there is nothing but the stdlib here
    for disk in root.iterfind("./devices/disk"):
        source, target = disk.find("source"), disk.find("target")
        if source is None or target is None or disk.find("readonly") is not None:
            continue
        path = source.get("file") or source.get("dev") or ""
        top = _file(path)
        for overlay, *files in standing:
            if top is not None and top in files:
                yield target.get("dev", ""), path, overlay
                break


def _file(path: str) -> tuple[int, int] | None:
    try:
        status = Path(path).stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def backing_of(overlay: str) -> str:
    """What its header names."""
    with Path(overlay).open("rb") as file:
        offset, length = struct.unpack_from(">QI", file.read(104), 8)
        file.seek(offset)
        name = os.fsdecode(file.read(min(length, 1023)))
    return str(Path(overlay).parent / name)


def holds_data(overlay: str) -> bool:
    """Whether anything was ever written to it: its first table has an entry. One that is gone holds nothing."""
    try:
        with Path(overlay).open("rb") as file:
            head = file.read(104)
            if head[:4] != b"QFI\xfb":
                return False
            entries, place = struct.unpack_from(">IQ", head, 36)
            file.seek(place)
            return entries > _MOST_ENTRIES or any(file.read(8 * entries))
    except FileNotFoundError:
        return False


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], PLACE))
