"""`vm …`, `vault list`, `service …`, `usage show`, `limits show`, `schedule preview`."""

from __future__ import annotations

import argparse
from typing import Any

from raksha.client import errors, naming
from raksha.client.commands import columns, job_options
from raksha.client.commands.base import Action, List, Show, listed
from raksha.client.records import Service, Vm


class ListVms(List):
    """List the VMs that can be protected, and what cannot be and why."""

    examples = ("vm list", "vm list --power running", "vm list -f json")
    sorts = ("id", "name", "power", "created_at")

    def options(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--name", help="only those with this name")
        parser.add_argument("--power", action="append", choices=("running", "paused", "shut off", "unknown"))
        self.paging(parser)

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        found = self.client.vms.list(name=parsed_args.name, power=parsed_args.power, **listed(parsed_args))
        return self.table(("ID", "Name", "Power", "Disks", "Size", "Protection"), (
            (vm.id, columns.text(vm.name), vm.power, columns.several([disk.target for disk in vm.disks]),
             columns.size(sum(disk.size or 0 for disk in vm.disks) if vm.disks else None),
             columns.text(_protection(vm)))
            for vm in found
        ))  # fmt: skip


def _protection(vm: Vm) -> str:
    left_out = [f"{disk.target}: {disk.reason}" for disk in vm.disks if disk.reason]
    return f"no: {vm.refusal.message}" if vm.refusal else f"not {'; '.join(left_out)}" if left_out else "possible"


class ShowVm(Show):
    """Show a VM, its disks, and the jobs that name it."""

    examples = ("vm show web",)

    def options(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("vm", metavar="VM", help="name or id")

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        vm = self.client.vms.get(self.client.vms.find(parsed_args.vm).id)
        sizes = [(disk, columns.size(disk.size).human_readable()) for disk in vm.disks]
        disks = [f"{disk.target}: {size}{f' ({disk.reason})' if disk.reason else ''}" for disk, size in sizes]
        return self.fields({
            "id": vm.id,
            "name": columns.text(vm.name),
            "power": vm.power,
            "status": columns.text(vm.status),
            "protection": columns.text(_protection(vm)),
            "disks": columns.lines(vm.disks, disks),
            "volumes": columns.several(vm.volumes),
            "tags": columns.several(vm.tags),
            "metadata": columns.lines(vm.metadata, [f"{key}: {value}" for key, value in vm.metadata.items()]),
            "jobs": columns.several(vm.backupjobs or ()),
            "seen_at": columns.moment(vm.seen_at),
        })  # fmt: skip


class ListVaults(List):
    """List where jobs may store."""

    examples = ("vault list",)

    def take_action(self, parsed_args: argparse.Namespace) -> Any:  # noqa: ARG002
        return self.table(("ID", "Name", "Kind", "Default"), (
            (vault.id, columns.text(vault.name), vault.kind, columns.yes(vault.is_default))
            for vault in self.client.vaults.list()
        ))  # fmt: skip


class ListServices(List):
    """List the processes of Raksha (for operators)."""

    examples = ("service list", "service list --kind agent")
    sorts = ("id", "kind", "name", "host", "state", "created_at")

    def options(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--kind", action="append", choices=("api", "scheduler", "agent"))
        parser.add_argument("--state", action="append", choices=("enabled", "draining", "drained", "disabled"))
        parser.add_argument("--host")
        self.paging(parser)

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        filters = {name: getattr(parsed_args, name) for name in ("kind", "state", "host")}
        found = self.client.services.list(**filters, **listed(parsed_args))
        return self.table(("ID", "Kind", "Name", "Host", "Zone", "State", "Alive", "Work", "Version"), (
            (each.id, each.kind, columns.text(each.name), columns.text(each.host), columns.text(each.zone), each.state,
             columns.yes(each.alive), f"{each.running} of {each.capacity}", each.version) for each in found
        ))  # fmt: skip


class SetService(Action):
    """Enable, drain or disable processes of Raksha (for operators)."""

    examples = ("service set compute-7 --drain --reason 'new memory'", "service set compute-7 --enable")

    def options(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("services", metavar="SERVICE", nargs="+", help="name or id")
        wanted = parser.add_mutually_exclusive_group(required=True)
        wanted.add_argument("--enable", dest="state", action="store_const", const="enabled", help="it takes new work")
        wanted.add_argument(
            "--drain",
            dest="state",
            action="store_const",
            const="draining",
            help="it ends what it has and takes nothing new",
        )
        wanted.add_argument("--disable", dest="state", action="store_const", const="disabled", help="nothing new")
        parser.add_argument("--reason", metavar="TEXT")

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        def do(text: str) -> None:
            found: list[Service] = [each for each in self.client.services.list() if text in (each.id, each.name)]
            service = naming.one("service", text, found)
            changed = self.client.services.update(service.id, state=parsed_args.state, reason=parsed_args.reason)
            self.say(f"{changed.kind} {changed.name} is {changed.state}")

        return self.each("service", parsed_args.services, do)


class ShowUsage(Show):
    """Show what the project has, and how much it may have."""

    examples = ("usage show",)

    def take_action(self, parsed_args: argparse.Namespace) -> Any:  # noqa: ARG002
        usage, limits = self.client.usage.get(), self.client.limits.get()
        return self.fields({
            "jobs": usage.jobs,
            "max_jobs": columns.number(limits.max_jobs),
            "runs": usage.runs,
            "max_runs": columns.number(limits.max_runs),
            "stored_bytes": columns.size(usage.stored_bytes),
            "max_stored_bytes": _at_most(limits.max_stored_bytes),
            "runs_under_way": usage.runs_under_way,
            "max_concurrent_runs": columns.number(limits.max_concurrent_runs),
            "restores_under_way": usage.restores_under_way,
        })  # fmt: skip


class ShowLimits(Show):
    """Show how much the project and its requests may ask for."""

    examples = ("limits show",)

    def take_action(self, parsed_args: argparse.Namespace) -> Any:  # noqa: ARG002
        limits = job_options.known(self.client.limits.get())
        limits.pop("etag", None)
        sizes = ("max_stored_bytes", "max_body_bytes")
        return self.fields(
            {name: (_at_most if name in sizes else columns.number)(value) for name, value in limits.items()}
        )


def _at_most(value: int | None) -> columns.Cell:
    return columns.number(value) if value == -1 else columns.size(value)


class PreviewSchedule(List):
    """Tell when a schedule would fire. Nothing is stored."""

    examples = (
        "schedule preview --every day --at 02:00 --timezone Europe/Paris",
        "schedule preview --cron '30 22 * * 1-5' --count 5",
    )

    def options(self, parser: argparse.ArgumentParser) -> None:
        job_options.add_schedule(parser)
        parser.add_argument("--count", metavar="N", type=int, default=10, help="how many times; default: 10")

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        schedule = job_options.schedule(parsed_args)
        if schedule is None:
            raise errors.WrongUse("No schedule is given", "Such as: --every day --at 02:00.")
        found = self.client.previews.schedule(schedule, count=parsed_args.count)
        self.say(found.in_words)
        return self.table(("Time", "Full"), (
            (columns.moment(each.scheduled_at), columns.yes(each.full)) for each in found.fire_times
        ))  # fmt: skip
