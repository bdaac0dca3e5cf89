"""`job create` and `job set`: options, and the body that they make. `Names` looks VMs and vaults up."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Struct

from raksha.client import scheduling, words
from raksha.client.errors import WrongUse
from raksha.client.records import Job

_KEEP = ("last", "hourly", "daily", "weekly", "monthly", "yearly")


class Names(Struct, frozen=True):
    """How a name becomes an id."""

    vm: Callable[[str], str]
    vault: Callable[[str], str]


def add_schedule(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("schedule", "When it runs by itself; without any of these: by hand only.")
    group.add_argument(
        "--every",
        metavar="PERIOD",
        help="hour, day, weekday, week, month, a day such as sunday, or a length of time: 90m, 6h, 2d",
    )
    group.add_argument("--at", metavar="HH:MM", help="time of the day; with --every hour :MM")
    group.add_argument("--on", metavar="DAY", help="day of the week (sun,wed) or of the month (1,15)")
    group.add_argument("--cron", metavar="EXPRESSION", help="instead: five fields, such as '30 22 * * 1-5'")
    group.add_argument("--timezone", metavar="ZONE", help="whose clock that is, such as Europe/Paris; default: UTC")
    group.add_argument("--start", metavar="TIME", help="no run before, such as 2027-01-31T18:00:00Z")
    group.add_argument("--end", metavar="TIME", help="no run after")
    group.add_argument("--window", metavar="HH:MM-HH:MM", help="runs start inside of it")
    group.add_argument("--jitter", metavar="LENGTH", help="put each run off by up to so much, such as 10m")
    group.add_argument("--full-every", metavar="N", type=int, help="every N-th run is full; default: only the first")
    group.add_argument("--full-cron", metavar="EXPRESSION", help="runs of its own, which are full")
    group.add_argument("--missed", choices=("run", "skip"),
                       help="after a downtime: run once for all that was missed (the default), or wait")  # fmt: skip


def add_retention(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what is kept", "Of each of the newest N days (…) the newest restore point; "
                                      "without any of these: everything.")  # fmt: skip
    for rule in _KEEP:
        group.add_argument(f"--keep-{rule}", metavar="N", type=int,
                           help="the newest N restore points" if rule == "last" else None)  # fmt: skip
    group.add_argument("--keep-timezone", metavar="ZONE", help="whose days these are; default: that of the schedule")


def add_how(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("how")
    group.add_argument(
        "--quiesce",
        nargs="?",
        const="require",
        choices=("auto", "require", "never"),
        help="freeze file systems by the guest agent: auto (if it answers, the default); "
        "--quiesce alone: require, no backup without; never",
    )
    group.add_argument("--engine", choices=("auto", "overlay", "pull"), help="default: auto")
    together = group.add_mutually_exclusive_group()
    together.add_argument(
        "--together", dest="group", action="store_true", default=None, help="all VMs at one instant (the default)"
    )
    together.add_argument("--one-by-one", dest="group", action="store_false", default=None, help="each for itself")
    group.add_argument(
        "--on-vm-failure", choices=("abort", "degrade"), help="abort the run (the default), or go on without the VM"
    )
    group.add_argument("--retries", metavar="N", type=int, help="after a failure; default: the operator's")
    group.add_argument("--retry-delay", metavar="LENGTH", help="before the first, doubled for each further one")
    group.add_argument("--bandwidth-limit", metavar="SIZE", help="bytes per second of each VM, such as 20M")
    group.add_argument("--max-parallel-disks", metavar="N", type=int, help="of each VM")
    group.add_argument("--host", metavar="HOST", action="append", help="do what any host can do there; may be repeated")
    group.add_argument("--zone", metavar="ZONE", action="append", help="the same for availability zones")
    group.add_argument("--test-restore", metavar="LENGTH", dest="test_every",
                       help="boot the newest restore point so often where it reaches nobody, and see whether it comes "
                       "up: 7d; never; default: as the operator says")  # fmt: skip
    group.add_argument("--test-marker", metavar="TEXT",
                       help="on its serial console, by which a VM says that it is up; default: its agent")  # fmt: skip
    group.add_argument("--test-timeout", metavar="LENGTH", help="that each VM has to come up, such as 10m")
    group.add_argument("--vault", metavar="VAULT", help="name or id; default: the default one (`vault list`)")
    group.add_argument("--description", metavar="TEXT")
    group.add_argument("--property", metavar="KEY=VALUE", action="append",
                       help="carried to the objects in the vault; may be repeated")  # fmt: skip


def add_members(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what is protected")
    group.add_argument("--vm", metavar="VM", action="append", default=[], help="name or id; may be repeated")
    group.add_argument(
        "--exclude",
        metavar="VM:DISK",
        action="append",
        default=[],
        help="leave this disk out, such as db:vdb; may be repeated",
    )
    group.add_argument(
        "--from-storage",
        metavar="VM",
        action="append",
        default=[],
        help="take the volumes of this VM from storage, by any host",
    )
    group.add_argument("--volume", metavar="ID", action="append", default=[], help="a volume of the cloud by itself")
    group.add_argument(
        "--force",
        metavar="VM|VOLUME",
        action="append",
        default=[],
        help="from storage also while it is in use: the backup holds what a power cut would leave",
    )
    group.add_argument("--tag", metavar="TAG", action="append", help="all VMs that have it, looked for at each run")
    group.add_argument("--having", metavar="KEY=VALUE", action="append", help="all VMs with this metadata")


# -- bodies -------------------------------------------------------------------------------------------


def schedule(options: argparse.Namespace, before: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
    """None: nothing was said of it. `before`: what the job has. Raises `WrongUse`."""
    said = scheduling.schedule(options.every, options.at, options.on, options.cron)
    plain = {"zone": options.timezone, "start": options.start, "end": options.end, "window": options.window,
             "full_every": options.full_every, "full_cron": options.full_cron}  # fmt: skip
    said |= {name: value for name, value in plain.items() if value is not None}
    if options.jitter is not None:
        said["jitter"] = words.length(options.jitter, "--jitter")
    if options.missed is not None:
        said["catch_up"] = {"run": "latest", "skip": "skip"}[options.missed]
    if not said:
        return None
    whole = scheduling.merged(before, said)
    if not {"cron", "every", "full_cron"} & whole.keys():
        raise WrongUse("The schedule does not say when", "Add --every or --cron, such as: --every day --at 02:00.")
    return whole


def retention(
    options: argparse.Namespace, zone: str | None, before: Mapping[str, Any] | None = None
) -> dict[str, Any] | None:
    """None: nothing was said of it. `zone`: of the schedule."""
    said = {("keep_last" if rule == "last" else rule): getattr(options, f"keep_{rule}") for rule in _KEEP}
    said = {name: number for name, number in said.items() if number is not None}
    if options.keep_timezone is not None:
        said["zone"] = options.keep_timezone
    if not said:
        return None
    standard = {"zone": zone} if zone else {}
    return {**standard, **(before or {}), **said}


def how(options: argparse.Namespace, names: Names, before: Job | None = None) -> dict[str, Any]:
    """Everything but schedule, retention and members. Raises `WrongUse`, `NoSuch`."""
    given = {"quiesce": options.quiesce, "engine": options.engine, "consistency_group": options.group,
             "on_vm_failure": options.on_vm_failure, "description": options.description,
             "max_parallel_disks": options.max_parallel_disks}  # fmt: skip
    body: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if options.bandwidth_limit is not None:
        body["bandwidth_limit"] = words.size(options.bandwidth_limit, "--bandwidth-limit")
    retry = {} if options.retries is None else {"retries": options.retries}
    if options.retry_delay is not None:
        retry["delay"] = words.length(options.retry_delay, "--retry-delay")
    if retry:
        body["retry"] = {**known(before.retry if before else None), **retry}
    if test := _test_restore(options):
        body["test_restore"] = {**known(before.test_restore if before else None), **test}
    if options.host or options.zone:
        wanted = {"hosts": options.host, "zones": options.zone}
        body["placement"] = {name: value for name, value in wanted.items() if value}
    if options.property:
        had = before.metadata if before else {}
        body["metadata"] = {**had, **dict(words.pair(text, "--property") for text in options.property)}
    if options.vault is not None:
        body["vault_service_id"] = names.vault(options.vault)
    return body


def _test_restore(options: argparse.Namespace) -> dict[str, Any]:
    """Raises `WrongUse`."""
    said: dict[str, Any] = {}
    if options.test_every is not None:
        never = options.test_every == "never"
        said["every"] = 0 if never else words.length(options.test_every, "--test-restore")
    if options.test_marker is not None:
        said["marker"] = options.test_marker
    if options.test_timeout is not None:
        said["timeout"] = words.length(options.test_timeout, "--test-timeout")
    return said


def selector(options: argparse.Namespace) -> dict[str, Any] | None:
    found: dict[str, Any] = {}
    if options.tag:
        found["tags"] = options.tag
    if options.having:
        found["metadata"] = dict(words.pair(text, "--having") for text in options.having)
    return found or None


def members(options: argparse.Namespace, names: Names) -> dict[str, Any]:
    """`vms`, `volumes` and `vm_selector` of a new job. Raises `WrongUse`, `NoSuch`, `Ambiguous`."""
    wanted = {text: names.vm(text) for text in dict.fromkeys([*options.vm, *options.from_storage])}
    by_id: dict[str, dict[str, Any]] = {id: {"id": id} for id in wanted.values()}
    for text in options.from_storage:
        by_id[wanted[text]]["source"] = "storage"
    exclude(by_id, options.exclude, names)
    volumes = {id: {"id": id} for id in dict.fromkeys(options.volume)}
    for text in options.force:
        member: dict[str, Any] | None = volumes.get(text) or by_id.get(wanted.get(text, text))
        if member is None:
            raise WrongUse(f"--force {text}: it is not among what the job protects", "Name it with --from-storage too.")
        member["force"] = True
    body: dict[str, Any] = {}
    if by_id:
        body["vms"] = list(by_id.values())
    if volumes:
        body["volumes"] = list(volumes.values())
    if (looked_for := selector(options)) is not None:
        body["vm_selector"] = looked_for
    if not body:
        raise WrongUse("Nothing is named to be protected", "Add --vm (`raksha vm list` shows them), --volume or --tag.")
    return body


def exclude(by_id: Mapping[str, dict[str, Any]], texts: Sequence[str], names: Names) -> None:
    """`VM:DISK` into the members. Raises `WrongUse`."""
    for text in texts:
        vm, disk = vm_and_disk(text, "--exclude")
        member = by_id.get(names.vm(vm))
        if member is None:
            raise WrongUse(
                f"--exclude {text}: {vm} is not among the VMs of the job", f"Add --vm {vm}, or leave it out."
            )
        member["excluded_disks"] = sorted({*member.get("excluded_disks", ()), disk})


def vm_and_disk(text: str, option: str) -> tuple[str, str]:
    """Raises `WrongUse`."""
    vm, colon, disk = text.rpartition(":")
    if not colon or not vm or not disk:
        raise WrongUse(f"{option} {text} names no disk", f"Write it as VM:DISK, such as {option} db:vdb.")
    return vm, disk


def known(record: Any) -> dict[str, Any]:
    """What a document of a job says, without what it leaves open."""
    document = {} if record is None else msgspec.to_builtins(record)
    return {name: value for name, value in document.items() if value is not None}
