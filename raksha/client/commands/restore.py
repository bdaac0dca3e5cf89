"""`restore …`: what is given back from a restore point."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, ClassVar

import msgspec

from raksha.client import errors
from raksha.client.commands import columns, restore_options
from raksha.client.commands.base import Action, List, Show, listed
from raksha.client.commands.run import find_run
from raksha.client.records import Restore, RestorePlan

STATES = ("queued", "running", "done", "cancelling", "cancelled", "error", "needs_attention")
_RESTORE = "id, or the beginning of one"


class ListRestores(List):
    """List the restores."""

    examples = ("restore list", "restore list --state running", "restore list --sort created_at:desc --limit 10")
    sorts = ("id", "state", "created_at")

    def options(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--state", action="append", choices=STATES, help="only these; may be repeated")
        parser.add_argument("--run", metavar="RUN", help="only those from this restore point")
        parser.add_argument("--job", metavar="JOB", help="the job of --run")
        self.paging(parser)

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        run = find_run(self, parsed_args.run, parsed_args.job).id if parsed_args.run else None
        found = self.client.restores.list(state=parsed_args.state, backupjobrun_id=run, **listed(parsed_args))
        return self.table(("ID", "State", "Done", "To", "VMs", "Run", "Begun", "Ended"), (
            (each.id, each.state, columns.Cell(each.progress.percent, lambda percent: f"{percent} %"), each.target.kind,
             columns.several([vm.name or vm.id for vm in each.vms]), columns.text(each.backupjobrun_id),
             columns.moment(each.created_at), columns.moment(each.finished_at)) for each in found
        ))  # fmt: skip


class OneRestore(Show):
    """Shows a restore, and watches it."""

    def shown(self, restore: Restore) -> tuple[tuple[str, ...], tuple[Any, ...]]:
        target = {name: value for name, value in msgspec.to_builtins(restore.target).items() if value}
        return self.fields({
            "id": restore.id,
            "state": restore.state,
            "error": columns.lines(restore.error, [restore.error.message] if restore.error else []),
            "backupjobrun_id": columns.text(restore.backupjobrun_id),
            "target": columns.lines(restore.target, _lines(target)),
            "vms": columns.lines(restore.vms, [_vm(vm) for vm in restore.vms]),
            "percent": restore.progress.percent,
            "bytes_total": columns.size(restore.progress.bytes_total),
            "bytes_done": columns.size(restore.progress.bytes_done),
            "made": columns.lines(restore.made, [line for each in restore.made for line in _lines(each)]),
            "result": columns.lines(restore.result, _lines(restore.result or {})),
            "created_at": columns.moment(restore.created_at),
            "started_at": columns.moment(restore.started_at),
            "finished_at": columns.moment(restore.finished_at),
            "request_id": columns.text(restore.request_id),
        })  # fmt: skip

    def to_the_end(self, restore: Restore) -> Restore:
        """Raises `Interrupted`."""
        hint = f"The restore goes on: `raksha restore watch {restore.id}` looks at it again."
        watched = self.client.restores.watch(restore.id)
        return self.follow(f"restore {restore.id[:8]}", watched, ("done",), hint)


def _vm(vm: Any) -> str:
    disks = f" ({', '.join(vm.disks)})" if vm.disks else ""
    return f"{vm.id}{f' as {vm.name}' if vm.name else ''}{disks}"


def _lines(document: Any, indent: str = "") -> list[str]:
    """Of nested documents, whatever is in them."""
    lines = []
    for key, value in document.items():
        if isinstance(value, dict):
            lines += [f"{indent}{key}:", *_lines(value, f"{indent}  ")] if value else []
        elif isinstance(value, list | tuple):
            for each in value:
                inner = _lines(each, f"{indent}  ") if isinstance(each, dict) else [f"{indent}  {each}"]
                lines += [f"{indent}{key}:", *inner]
        elif value is not None:
            lines.append(f"{indent}{key}: {value}")
    return lines


class ShowRestore(OneRestore):
    """Show a restore, and what it has made."""

    examples = ("restore show 3f2a", "restore show 3f2a -f json")

    def options(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("restore", metavar="RESTORE", help=_RESTORE)

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        return self.shown(self.client.restores.find(parsed_args.restore))


class WatchRestore(OneRestore):
    """Watch a restore until it has ended. Ctrl-C ends the watching, not the restore."""

    examples = ("restore watch 3f2a",)

    def options(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("restore", metavar="RESTORE", help=_RESTORE)

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        return self.shown(self.to_the_end(self.client.restores.find(parsed_args.restore)))


class CreateRestore(OneRestore):
    """Give back VMs, disks, servers, volumes or images from a restore point."""

    examples: ClassVar[Sequence[str]] = (
        "restore create latest --job nightly --vm web --name web-again --start --wait",
        "restore create 3f2a --vm web --disk web:vdb --to files --disk-format raw",
        "restore create 3f2a --vm web --to in-place --dry-run",
        "restore create 3f2a --to server --flavor m1.small --network 5f3c… --key-name mine --wait",
        "restore create 3f2a --to volume --overwrite web:vdb=77b1…",
        "restore create 3f2a --to server --project 0c1d… --network 5f3c…",
    )

    def options(self, parser: argparse.ArgumentParser) -> None:
        restore_options.add(parser)
        parser.add_argument(
            "--dry-run", action="store_true", help="tell what it would do, and what might be in its way"
        )
        parser.add_argument("--wait", action="store_true", help="until it has ended, with progress")

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        run = find_run(self, parsed_args.run, parsed_args.job)
        if not run.restorable:
            raise errors.WrongUse(
                f"Run {run.id} is {run.state}: it is no restore point",
                "`raksha run list --state available` shows those that are.",
            )
        target, vms = restore_options.body(parsed_args, run)
        if parsed_args.dry_run:
            return self._planned(self.client.restores.plan(run.backupjob_id, run.id, target, vms))
        restore = self.client.restores.create(run.backupjob_id, run.id, target, vms)
        if not parsed_args.wait:
            self.say(f"the restore is {restore.state}; `raksha restore watch {restore.id}` shows how it goes on")
            return self.shown(restore)
        return self.shown(self.to_the_end(restore))

    def _planned(self, plan: RestorePlan) -> tuple[tuple[str, ...], tuple[Any, ...]]:
        lines = []
        for vm in plan.vms:
            lines.append(f"{vm.name or vm.id}{f' as {vm.new_name}' if vm.new_name else ''}")
            for disk in vm.disks:
                size, fetched = (columns.size(each).human_readable() for each in (disk.size, disk.bytes_stored))
                lines.append(f"  {disk.resource}: {size}, at most {fetched} to fetch from {len(disk.copies)} copies")
        return self.fields({
            "backupjobrun_id": plan.backupjobrun_id,
            "kind": plan.kind,
            "taken_at": columns.moment(plan.taken_at),
            "consistency": columns.text(plan.consistency),
            "bytes_total": columns.size(plan.bytes_total),
            "bytes_stored": columns.size(plan.bytes_stored),
            "vms": columns.lines(plan.vms, lines),
            "problems": columns.lines(plan.problems, [each.message for each in plan.problems] or ["none known"]),
        })  # fmt: skip


class RestorePlanOfRun(CreateRestore):
    """Tell what a restore would do: the same as `restore create --dry-run`."""

    examples = ("run restore-plan 3f2a", "run restore-plan latest --job nightly --vm web --to in-place")

    def options(self, parser: argparse.ArgumentParser) -> None:
        restore_options.add(parser)
        parser.set_defaults(dry_run=True, wait=False)


class CancelRestore(Action):
    """Cancel restores."""

    examples = ("restore cancel 3f2a",)

    def options(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("restores", metavar="RESTORE", nargs="+", help=_RESTORE)

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        def do(text: str) -> None:
            restore = self.client.restores.cancel(self.client.restores.find(text).id)
            self.say(f"restore {restore.id} is being cancelled")

        return self.each("restore", parsed_args.restores, do)
