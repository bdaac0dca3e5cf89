"""`restore create`: options, and the body that they make. VMs are named as the restore point knows them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from raksha.client import words
from raksha.client.commands.run import add_run
from raksha.client.errors import Ambiguous, NoSuch, WrongUse
from raksha.client.records import Run, VmOfRun

KINDS = ("domain", "files", "in-place", "server", "volume", "image")
_PLAIN = ("project", "directory", "host", "flavor", "key_name", "availability_zone", "volume_type")


def add(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    parser.add_argument("--to", choices=KINDS, metavar="KIND",
                        help="domain: new VMs on a hypervisor; files: disks as files; in-place: over the disks of the "
                        "VM, which must be shut off; server, volume, image: into the cloud. Default: server for what "
                        "was one, otherwise domain")  # fmt: skip
    parser.add_argument(
        "--vm",
        metavar="VM",
        action="append",
        default=[],
        help="only this VM of the restore point (name or id); may be repeated",
    )
    parser.add_argument(
        "--disk",
        metavar="[VM:]DISK",
        action="append",
        default=[],
        help="only this disk, such as web:vdb; may be repeated",
    )
    parser.add_argument(
        "--name",
        metavar="[VM=]NAME",
        action="append",
        default=[],
        help="of the new VM, or of what is made of its disks; default: the old one with -restored-…",
    )
    start = parser.add_mutually_exclusive_group()
    start.add_argument("--start", dest="start", action="store_true", default=None, help="let it run")
    start.add_argument("--no-start", dest="start", action="store_false", default=None, help="leave it shut off")
    parser.add_argument("--disk-format", choices=("raw", "qcow2"), help="of new files; default: as they were")
    cloud = parser.add_argument_group("into the cloud", "What is not named is as it was when it was backed up.")
    cloud.add_argument("--project", metavar="ID", help="another project of yours that it goes into; it needs Keystone")
    cloud.add_argument("--flavor", metavar="FLAVOR", help="name or id")
    cloud.add_argument("--network", metavar="ID[,IP]", action="append", help="of a network card; may be repeated")
    cloud.add_argument("--no-network", action="store_true", help="without any")
    cloud.add_argument("--key-name", metavar="NAME", help="'' for none")
    cloud.add_argument("--security-group", metavar="NAME", action="append", help="may be repeated")
    cloud.add_argument("--availability-zone", metavar="ZONE")
    cloud.add_argument("--volume-type", metavar="TYPE", help="of all volumes")
    cloud.add_argument("--property", metavar="KEY=VALUE", action="append", help="of the server; may be repeated")
    cloud.add_argument(
        "--overwrite",
        metavar="VM:DISK=VOLUME",
        action="append",
        default=[],
        help="with --to volume: write over this volume; what it holds is gone",
    )
    operators = parser.add_argument_group("for operators")
    operators.add_argument("--host", help="whose agent does it")
    operators.add_argument("--directory", metavar="PATH", help="where to on that host")


def body(options: argparse.Namespace, run: Run) -> tuple[dict[str, Any], list[dict[str, Any]] | None]:
    """`target` and `vms` (None: all). Raises `WrongUse`, `NoSuch`, `Ambiguous`."""
    vms = _vms(options, run)
    return _target(options, run), vms


def _target(options: argparse.Namespace, run: Run) -> dict[str, Any]:
    of_cloud = any(vm.server is not None for vm in run.vms or ())
    kind = (options.to or ("server" if of_cloud else "domain")).replace("-", "_")
    target: dict[str, Any] = {"kind": kind}
    target |= {name: getattr(options, name) for name in _PLAIN if getattr(options, name) is not None}
    if options.disk_format is not None:
        target["format"] = options.disk_format
    if options.start is not None:
        target["start"] = options.start
    if options.network and options.no_network:
        raise WrongUse("--network and --no-network exclude each other", "Name one of the two.")
    if options.network or options.no_network:
        target["networks"] = [_network(text) for text in options.network or ()]
    if options.security_group:
        target["security_groups"] = options.security_group
    if options.property:
        target["metadata"] = dict(words.pair(text, "--property") for text in options.property)
    return target


def _network(text: str) -> dict[str, str]:
    id, comma, ip = text.partition(",")
    return {"network_id": id, "fixed_ip": ip} if comma else {"network_id": id}


def _vms(options: argparse.Namespace, run: Run) -> list[dict[str, Any]] | None:
    there = run.vms or ()
    asked = {vm.vm_id: {"id": vm.vm_id} for vm in (_vm(there, text) for text in options.vm)}
    wanted: dict[str, dict[str, Any]] = asked or {vm.vm_id: {"id": vm.vm_id} for vm in there}

    def member(text: str, vm: str, option: str) -> dict[str, Any]:
        if vm:
            id = _vm(there, vm).vm_id
            if asked and id not in asked:
                raise WrongUse(f"{option} {text}: {vm} is not among the VMs to restore", f"Add --vm {vm}.")
        elif len(wanted) == 1:
            id = next(iter(wanted))
        else:
            raise WrongUse(f"{option} {text}: of which of {len(wanted)} VMs?", f"Its VMs: {_named(there)}.")
        return wanted[id]

    chosen: set[str] = set()
    for text in options.disk:
        vm, _, disk = text.rpartition(":")
        found = member(text, vm, "--disk")
        found.setdefault("disks", []).append(disk)
        chosen.add(found["id"])
    for text in options.name:
        vm, _, name = text.rpartition("=")
        member(text, vm, "--name")["name"] = name
    for text in options.overwrite:
        where, volume = words.pair(text, "--overwrite")
        vm, _, disk = where.rpartition(":")
        found = member(text, vm, "--overwrite")
        found.setdefault("overwrite", {})[disk] = volume
        chosen.add(found["id"])
    if chosen and not asked:
        # who names disks means these and no others
        wanted = {id: vm for id, vm in wanted.items() if id in chosen}
    plain = all(vm.keys() == {"id"} for vm in wanted.values())
    return None if plain and not asked else list(wanted.values())


def _vm(there: Sequence[VmOfRun], text: str) -> VmOfRun:
    found = [vm for vm in there if text in (vm.vm_id, vm.name)]
    if not found:
        raise NoSuch(f"The restore point has no VM {text!r}", f"It has: {_named(there)}.")
    if len(found) > 1:
        raise Ambiguous("VM", text, [vm.vm_id for vm in found])
    return found[0]


def _named(there: Sequence[VmOfRun]) -> str:
    return ", ".join(vm.name or vm.vm_id for vm in there)
