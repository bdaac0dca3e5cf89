"""`raksha local …`: arguments in, `LocalHost` called, results told."""

from __future__ import annotations

import argparse
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from raksha import config
from raksha.agent.local import LocalHost
from raksha.backup.run import BackupOrder
from raksha.cmd import told
from raksha.cmd.output import Output
from raksha.states import Format, Quiesce

Call = Callable[[argparse.Namespace, Output, threading.Event], int]

_RUN = "id of a restore point, the beginning of it, or: latest"
_WHICH = "which VM of the restore point, by its name then or its UUID; needed if there are several"
_EXAMPLES = """\
examples:
  raksha local vms
  raksha local backup web db --vault file:///srv/vault --quiesce require
  raksha local list --vault file:///srv/vault
  raksha local restore latest --vault file:///srv/vault --vm web --as web-again --into /srv/images
  raksha local restore 3f2a --vault swift:// --vm web --disk vdb --to /tmp/vdb.raw
"""


def add_to(verbs: Any, asked: str | None) -> None:
    """The parser of `local` and its commands; of the `asked` one alone, if it is one: the rest takes 15 ms."""
    parser = verbs.add_parser(
        "local",
        help="protect the VMs of this host, without any service",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, add in _COMMANDS.items():
        if name == asked or asked not in _COMMANDS:
            add(commands)


# -- parsers ------------------------------------------------------------------------------------------


def _command(commands: Any, name: str, call: Call, about: str, *, vault: bool = True) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=about, description=about)
    parser.set_defaults(call=call)
    if vault:
        default = os.environ.get("RAKSHA_VAULT")
        parser.add_argument(
            "--vault",
            metavar="URL",
            default=default,
            required=default is None,
            help="file:///path or swift://[prefix]; default: $RAKSHA_VAULT",
        )
    common = parser.add_argument_group("host")
    common.add_argument("--connect", metavar="URI", dest="libvirt_uri", help="libvirt to talk to")
    common.add_argument("--config", metavar="FILE", type=Path, help="default: /etc/raksha/raksha.conf, if it is there")
    common.add_argument("--state-dir", metavar="DIR", type=Path, help="journal, locks and temporary files")
    common.add_argument("--workers", metavar="N", type=_positive, help="threads that read, compress and send")
    common.add_argument("--json", action="store_true", help="one JSON document on standard output, nothing else")
    common.add_argument("--quiet", action="store_true", help="results and warnings only")
    return parser


def _add_backup(commands: Any) -> None:
    parser = _command(commands, "backup", _backup, "back up VMs, all at one instant")
    parser.add_argument("vm", nargs="+", metavar="VM", help="name or UUID")
    parser.add_argument("--job", metavar="NAME", help="what these runs belong to; default: the names of the VMs")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--full", action="store_true", help="read everything, whatever the vault has")
    kind.add_argument("--incremental", action="store_true", help="what changed since the last run (the default)")
    parser.add_argument("--exclude", action="append", default=[], metavar="VM:DISK",
                        help="leave a disk out (repeatable)")  # fmt: skip
    parser.add_argument("--quiesce", type=Quiesce, choices=list(Quiesce), default=Quiesce.AUTO, metavar="WHEN",
                        help="freeze the file systems through the guest agent: auto, require or never")  # fmt: skip
    parser.add_argument("--engine", choices=["auto", "overlay", "pull"], help="how to capture; default: auto")
    parser.add_argument("--overlay-dir", metavar="DIR", type=Path, help="default: beside the disk")
    parser.add_argument("--take-over", action="store_true", help="become the writer of a vault that another host wrote")


def _add_prune(commands: Any) -> None:
    parser = _command(commands, "prune", _prune, "delete old restore points and free their space")
    parser.add_argument("--keep-last", metavar="N", type=_positive, required=True, help="restore points left per job")
    parser.add_argument("--job", metavar="NAME", help="of this job only")
    parser.add_argument("--dry-run", action="store_true", help="say what would be deleted")


def _add_delete(commands: Any) -> None:
    parser = _command(commands, "delete", _delete, "delete restore points; those that build on them stay whole")
    parser.add_argument("run", nargs="+", metavar="RUN", help=_RUN)
    parser.add_argument("--dry-run", action="store_true", help="say what would be deleted")


def _add_list(commands: Any) -> None:
    parser = _command(commands, "list", _list, "restore points in a vault")
    parser.add_argument("--job", metavar="NAME", help="of this job only")
    parser.add_argument("--vm", metavar="VM", help="with this VM only: its name then, or its UUID")


def _add_show(commands: Any) -> None:
    parser = _command(commands, "show", _show, "one restore point, with its VMs and disks")
    parser.add_argument("run", metavar="RUN", help=_RUN)


def _add_verify(commands: Any) -> None:
    parser = _command(commands, "verify", _verify, "prove that restore points are all there")
    parser.add_argument("run", nargs="*", metavar="RUN", help="default: all")
    parser.add_argument("--data", action="store_true", help="fetch, decode and hash everything")


def _add_restore(commands: Any) -> None:
    parser = _command(commands, "restore", _restore, "give back a VM, or disks of it")
    parser.add_argument("run", metavar="RUN", help=_RUN)
    parser.add_argument("--vm", metavar="VM", help=_WHICH)
    parser.add_argument("--disk", action="append", default=[], metavar="DISK", help="only this disk (repeatable)")
    parser.add_argument("--as", dest="new_name", metavar="NAME", help="define a new VM of this name")
    parser.add_argument("--into", metavar="DIR", type=Path, help="directory for the disks")
    parser.add_argument("--to", metavar="PATH", type=Path, help="one disk, into this file or block device")
    parser.add_argument("--format", type=Format, choices=list(Format), metavar="FORMAT",
                        help="of files: qcow2 or raw; default: as the VM had it")  # fmt: skip
    parser.add_argument("--device", action="append", default=[], metavar="DISK=PATH",
                        help="put a disk into a block device; what it holds is overwritten")  # fmt: skip
    parser.add_argument("--thin", action="append", default=[], metavar="DISK=IMAGE",
                        help="build on an original image that is at hand")  # fmt: skip
    parser.add_argument("--start", action="store_true", help="start the new VM")
    parser.add_argument("--dry-run", action="store_true", help="say what would be written")


def _add_export(commands: Any) -> None:
    parser = _command(commands, "export", _export, "plain qcow2 files, for any tool")
    parser.add_argument("run", metavar="RUN", help=_RUN)
    parser.add_argument("--vm", metavar="VM", help=_WHICH)
    parser.add_argument("--disk", action="append", default=[], metavar="DISK", help="only this disk (repeatable)")
    parser.add_argument("--into", metavar="DIR", type=Path, required=True, help="a directory that is new or empty")
    parser.add_argument("--flatten", action="store_true", help="one file a disk, instead of its chain")


def _add_vms(commands: Any) -> None:
    _command(commands, "vms", _vms, "VMs of this host and their disks", vault=False)


def _add_release(commands: Any) -> None:
    parser = _command(commands, "release", _release, "take every trace of Raksha out of VMs' disk chains", vault=False)
    parser.add_argument("vm", nargs="+", metavar="VM", help="name or UUID")


def _add_recover(commands: Any) -> None:
    about = "put right what a killed command or daemon left behind, and say what is seen"
    parser = _command(commands, "recover", _recover, about, vault=False)
    parser.add_argument("vm", nargs="*", metavar="VM", help="default: all that Raksha has anything to do with")
    parser.add_argument("--dry-run", action="store_true", help="say what is seen and would be done")


def _add_install_hook(commands: Any) -> None:
    about = "let libvirt refuse to start a VM below an overlay of Raksha"
    _command(commands, "install-hook", _install_hook, about, vault=False)


def _add_remove_hook(commands: Any) -> None:
    _command(commands, "remove-hook", _remove_hook, "take that hook away", vault=False)


_COMMANDS: dict[str, Callable[[Any], None]] = {
    "backup": _add_backup,
    "prune": _add_prune,
    "delete": _add_delete,
    "list": _add_list,
    "show": _add_show,
    "verify": _add_verify,
    "restore": _add_restore,
    "export": _add_export,
    "vms": _add_vms,
    "release": _add_release,
    "recover": _add_recover,
    "install-hook": _add_install_hook,
    "remove-hook": _add_remove_hook,
}


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number


# -- calls --------------------------------------------------------------------------------------------


def _host(options: argparse.Namespace, output: Output, cancel: threading.Event) -> LocalHost:
    file = options.config or (config.STANDARD_FILE if config.STANDARD_FILE.exists() else None)
    if file is not None:
        # where there is no file, a short command does without the time that this takes
        from raksha import config_check

        config_check.check(file)
    settings = config.load(
        file,
        libvirt_uri=options.libvirt_uri,
        state_dir=options.state_dir,
        workers=options.workers,
        overlay_dir=getattr(options, "overlay_dir", None),
        engine=getattr(options, "engine", None),
    )
    return LocalHost(settings, output, cancel)


def _backup(options: argparse.Namespace, output: Output, cancel: threading.Event) -> int:
    order = BackupOrder(
        vms=tuple(options.vm),
        job_name=options.job,
        full=options.full,
        exclude=told.excluded(options.exclude, options.vm),
        quiesce=options.quiesce,
    )
    result = _host(options, output, cancel).backup(options.vault, order, take_over=options.take_over)
    for warning in result.warnings:
        output.warning(warning)
    document = {"run": msgspec.to_builtins(result.run), "warnings": list(result.warnings)}
    output.result(document, told.backup(result.run))
    return 0


def _prune(options: argparse.Namespace, output: Output, cancel: threading.Event) -> int:
    host = _host(options, output, cancel)
    pruned = host.prune(options.vault, options.keep_last, job=options.job, dry_run=options.dry_run)
    output.result(told.pruned_document(pruned), told.pruned(pruned, options.dry_run))
    return 0


def _delete(options: argparse.Namespace, output: Output, cancel: threading.Event) -> int:
    pruned = _host(options, output, cancel).delete(options.vault, options.run, dry_run=options.dry_run)
    output.result(told.pruned_document(pruned), told.pruned(pruned, options.dry_run))
    return 0


def _list(options: argparse.Namespace, output: Output, cancel: threading.Event) -> int:
    listing = _host(options, output, cancel).runs(options.vault, job=options.job, vm=options.vm)
    damaged = [{"object": name, "code": error.code, "detail": str(error)} for name, error in listing.damaged.items()]
    output.result({"runs": msgspec.to_builtins(listing.runs), "damaged": damaged}, told.runs(listing.runs))
    for each in damaged:
        output.warning(f"a restore point cannot be read: {each['detail']}")
    return 6 if damaged else 0


def _show(options: argparse.Namespace, output: Output, cancel: threading.Event) -> int:
    run, disks = _host(options, output, cancel).show(options.vault, options.run)
    output.result(msgspec.to_builtins({"run": run, "disks": disks}), told.run(run, disks))
    return 0


def _verify(options: argparse.Namespace, output: Output, cancel: threading.Event) -> int:
    copies, findings = _host(options, output, cancel).verify(options.vault, options.run, data=options.data)
    document = {"copies": copies, "findings": msgspec.to_builtins(findings)}
    output.result(document, told.verified(copies, findings, data=options.data))
    return 6 if findings else 0


def _restore(options: argparse.Namespace, output: Output, cancel: threading.Event) -> int:
    from raksha.agent.restore import RestoreOrder  # see LocalHost

    order = RestoreOrder(
        vm=options.vm,
        disks=tuple(options.disk),
        new_name=options.new_name,
        into=options.into,
        to=options.to,
        format=options.format,
        devices=told.paths("--device", options.device),
        thin=told.paths("--thin", options.thin),
        start=options.start,
        dry_run=options.dry_run,
    )
    restored = _host(options, output, cancel).restore(options.vault, options.run, order)
    for warning in restored.warnings:
        output.warning(warning)
    output.result(told.plain(restored), told.restored(restored, options.dry_run))
    return 0


def _export(options: argparse.Namespace, output: Output, cancel: threading.Event) -> int:
    host = _host(options, output, cancel)
    files = host.export(
        options.vault, options.run, options.into, vm=options.vm, disks=options.disk, flatten=options.flatten
    )
    output.result({"files": told.plain(files)}, told.exported(files))
    return 0


def _release(options: argparse.Namespace, output: Output, cancel: threading.Event) -> int:
    released = _host(options, output, cancel).release(options.vm)
    output.result({"released": released}, [f"{vm}: {line}" for vm, lines in released.items() for line in lines])
    return 0


def _recover(options: argparse.Namespace, output: Output, cancel: threading.Event) -> int:
    found = _host(options, output, cancel).recover(options.vm, dry_run=options.dry_run)
    output.result({"vms": [told.recovery_document(vm) for vm in found]}, told.recovered(found, options.dry_run))
    for vm in found:
        if vm.trouble is not None:
            output.warning(f"{vm.trouble} {vm.trouble.advice()}")
    return max((vm.trouble.exit_code for vm in found if vm.trouble is not None), default=0)


def _install_hook(options: argparse.Namespace, output: Output, cancel: threading.Event) -> int:
    path = _host(options, output, cancel).install_hook()
    line = f"{path} is in place; libvirt heeds a new hook once its daemon (libvirtd or virtqemud) is restarted"
    output.result({"hook": str(path)}, [line])
    return 0


def _remove_hook(options: argparse.Namespace, output: Output, cancel: threading.Event) -> int:
    removed = _host(options, output, cancel).remove_hook()
    output.result({"removed": removed}, [f"{path} is gone" for path in removed] or ["there was no hook"])
    return 0


def _vms(options: argparse.Namespace, output: Output, cancel: threading.Event) -> int:
    vms = _host(options, output, cancel).vms()
    output.result({"vms": told.plain(vms)}, told.vms(vms))
    return 0
