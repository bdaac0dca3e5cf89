"""`run …` and `job run`: executions of jobs, and the restore points that they leave."""

from __future__ import annotations

import argparse
import heapq
from collections.abc import Iterator
from typing import Any

from raksha.client import errors, words
from raksha.client.commands import columns
from raksha.client.commands.base import Action, List, Show, listed
from raksha.client.commands.job import gone
from raksha.client.records import Run

STATES = ("queued", "ready", "running", "committing", "available", "degraded", "cancelling", "cancelled", "error",
          "needs_attention", "deleting")  # fmt: skip
WELL = ("available",)
RUN = "id, the beginning of one, or `latest`: the newest restore point"


def add_run(parser: argparse.ArgumentParser, **more: Any) -> None:
    parser.add_argument("run" if not more else "runs", metavar="RUN", help=RUN, **more)
    parser.add_argument(
        "--job", metavar="JOB", help="of this job (name or id); needed for `latest` if there are several"
    )


def find_run(command: Any, text: str, job: str | None) -> Run:
    """Raises `NoSuch`, `Ambiguous`, `WrongUse`."""
    client = command.client
    if job is not None:
        ids = [client.jobs.find(job).id]
    else:
        ids = [each.id for each in client.jobs.list()]
        if text == "latest" and len(ids) > 1:
            raise errors.WrongUse(f"The latest run of which of {len(ids)} jobs?", "Add --job JOB.")
    found: Run = client.runs.find(text, ids)
    return found


class ListRuns(List):
    """List runs and restore points, of one job or of all."""

    examples = ("run list", "run list nightly", "run list nightly --state available -f json", "run list --limit 20")
    sorts = ("id", "state", "kind", "created_at")

    def options(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("job", metavar="JOB", nargs="?", help="name or id; default: all, the newest run first")
        parser.add_argument("--state", action="append", choices=STATES, help="only these; may be repeated")
        parser.add_argument("--kind", choices=("full", "incremental"))
        parser.add_argument("--trigger", choices=("schedule", "request", "retry"), help="what made them")
        parser.add_argument("--protected", action="store_true", default=None, help="only those that retention spares")
        self.paging(parser)

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        jobs = [self.client.jobs.find(parsed_args.job)] if parsed_args.job else list(self.client.jobs.list())
        names = {job.id: job.name for job in jobs}
        found = self._of_one(parsed_args, jobs[0].id) if parsed_args.job else self._of_all(parsed_args, list(names))
        told = ("ID", "Job", "State", "Kind", "Trigger", "Taken", "Sent", "Stored", "Protected")
        return self.table(told, (
            (run.id, columns.text(names[run.backupjob_id]), _state(run), run.kind, run.trigger,
             columns.moment(run.taken_at), columns.size(run.progress.bytes_sent), columns.size(run.bytes_stored),
             columns.yes(run.protected)) for run in found
        ))  # fmt: skip

    def _filters(self, options: argparse.Namespace) -> dict[str, Any]:
        return {name: getattr(options, name) for name in ("state", "kind", "trigger", "protected")}

    def _of_one(self, options: argparse.Namespace, job_id: str) -> Iterator[Run]:
        return self.client.runs.list(job_id, **self._filters(options), **listed(options))

    def _of_all(self, options: argparse.Namespace, ids: list[str]) -> list[Run]:
        if options.marker or options.sort:
            raise errors.WrongUse(
                "--marker and --sort need a job", "Such as: raksha run list JOB --sort created_at:asc."
            )
        filters = {**self._filters(options), "sort": "created_at:desc", "limit": options.limit}
        several = [self.client.runs.list(id, **filters) for id in ids]
        merged = heapq.merge(*several, key=lambda run: (run.created_at is not None, run.created_at), reverse=True)
        return list(merged)[: options.limit]


def _state(run: Run) -> Any:
    percent = run.progress.percent
    return columns.Cell(
        run.state, lambda state: f"{state} {percent} %" if percent is not None and not run.ended else state
    )


class OneRun(Show):
    """Shows a run."""

    def shown(self, run: Run) -> tuple[tuple[str, ...], tuple[Any, ...]]:
        return self.fields({
            "id": run.id,
            "backupjob_id": run.backupjob_id,
            "description": columns.text(run.description),
            "state": run.state,
            "queued_reason": columns.text(run.queued_reason.message if run.queued_reason else None),
            "error": columns.lines(run.error, [run.error.message] if run.error else []),
            "warnings": columns.lines(run.warnings, run.warnings),
            "kind": run.kind,
            "trigger": run.trigger,
            "attempt": run.attempt,
            "retry_of": columns.text(run.retry_of),
            "protected": columns.yes(run.protected),
            "consistency": columns.text(run.consistency),
            "group_consistent": columns.yes(run.group_consistent),
            "skew": columns.seconds(run.skew_seconds),
            "frozen": columns.seconds(run.frozen_seconds),
            "created_at": columns.moment(run.created_at),
            "started_at": columns.moment(run.started_at),
            "taken_at": columns.moment(run.taken_at),
            "finished_at": columns.moment(run.finished_at),
            "verified_at": columns.moment(run.verified_at),
            "proven_restorable_at": columns.moment(run.proven_restorable_at),
            "percent": run.progress.percent,
            "bytes_read": columns.size(run.progress.bytes_done),
            "bytes_sent": columns.size(run.progress.bytes_sent),
            "bytes_stored": columns.size(run.bytes_stored),
            "vms": columns.lines(run.vms or (), [line for vm in run.vms or () for line in _vm(vm)]),
            "request_id": columns.text(run.request_id),
        })  # fmt: skip


def _vm(vm: Any) -> list[str]:
    said = ", ".join(word for word in (vm.state, vm.engine, vm.consistency, vm.error and vm.error.message) if word)
    lines = [f"{vm.name or vm.vm_id}: {said}"]
    for disk in vm.resources:
        size = columns.size(disk.size).human_readable()
        sent = columns.size(disk.progress.bytes_sent).human_readable()
        why = f" ({disk.reason})" if disk.reason else ""
        lines.append(f"  {disk.resource}: {size}, {disk.kind or 'not begun'}{why}, {sent} sent")
    if vm.proven_restorable_at:
        lines.append(f"  came up in a test ({vm.proven_by}): {words.human_moment(vm.proven_restorable_at)}")
    if vm.unproven_at:
        why = f": {vm.unproven_reason.message}" if vm.unproven_reason else ""
        lines.append(f"  did not prove to come up {words.human_moment(vm.unproven_at)}{why}")
    return [*lines, *(f"  warning: {warning}" for warning in vm.warnings)]


class ShowRun(OneRun):
    """Show a run with its VMs and disks."""

    examples = ("run show 3f2a", "run show latest --job nightly", "run show 3f2a -f json")

    def options(self, parser: argparse.ArgumentParser) -> None:
        add_run(parser)

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        return self.shown(find_run(self, parsed_args.run, parsed_args.job))


class SetRun(OneRun):
    """Protect a restore point from retention and deletion, or describe it."""

    examples = ("run set 3f2a --protect --description 'before the upgrade'", "run set 3f2a --unprotect")

    def options(self, parser: argparse.ArgumentParser) -> None:
        add_run(parser)
        group = parser.add_mutually_exclusive_group()
        group.add_argument("--protect", dest="protected", action="store_true", default=None)
        group.add_argument("--unprotect", dest="protected", action="store_false", default=None)
        parser.add_argument("--description", metavar="TEXT")

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        given = {"protected": parsed_args.protected, "description": parsed_args.description}
        changes = {name: value for name, value in given.items() if value is not None}
        if not changes:
            raise errors.WrongUse("Nothing is named to be changed", "Add --protect, --unprotect or --description.")
        run = find_run(self, parsed_args.run, parsed_args.job)
        self.client.runs.update(run.backupjob_id, run.id, etag=run.etag, **changes)
        return self.shown(self.client.runs.get(run.backupjob_id, run.id))


class Follows(OneRun):
    """Watches runs to their end."""

    def to_the_end(self, run: Run, label: str | None = None) -> Run:
        """Raises `Interrupted`."""
        hint = f"The run goes on: `raksha run watch {run.id}` looks at it again, `raksha run cancel {run.id}` ends it."
        watched = self.client.runs.watch(run.backupjob_id, run.id)
        return self.follow(label or f"run {run.id[:8]}", watched, WELL, hint)


class WatchRun(Follows):
    """Watch a run until it has ended. Ctrl-C ends the watching, not the run."""

    examples = ("run watch 3f2a",)

    def options(self, parser: argparse.ArgumentParser) -> None:
        add_run(parser)

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        return self.shown(self.to_the_end(find_run(self, parsed_args.run, parsed_args.job)))


class RunJob(Follows):
    """Run a backup job now."""

    examples = ("job run nightly --wait", "job run nightly --full --protect --description 'before the upgrade'")

    def options(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("job", metavar="JOB", help="name or id")
        kind = parser.add_mutually_exclusive_group()
        kind.add_argument("--full", dest="kind", action="store_const", const="full", help="read everything anew")
        kind.add_argument(
            "--incremental",
            dest="kind",
            action="store_const",
            const="incremental",
            help="only what changed; default: as the job's schedule says",
        )
        parser.add_argument("--protect", action="store_true", default=None, help="retention spares it")
        parser.add_argument("--description", metavar="TEXT")
        parser.add_argument("--wait", action="store_true", help="until it has ended, with progress")

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        job = self.client.jobs.find(parsed_args.job)
        run = self.client.runs.start(
            job.id, kind=parsed_args.kind, description=parsed_args.description, protected=parsed_args.protect
        )
        if not parsed_args.wait:
            self.say(f"the run is {run.state}; `raksha run watch {run.id}` shows how it goes on")
            return self.shown(run)
        return self.shown(self.to_the_end(run, f"run {run.id[:8]} of {job.name}"))


class _OfRuns(Action):
    """Does one thing with each of several runs."""

    def options(self, parser: argparse.ArgumentParser) -> None:
        add_run(parser, nargs="+")

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        def do(text: str) -> None:
            self.one(find_run(self, text, parsed_args.job), parsed_args)

        return self.each("run", parsed_args.runs, do)

    def one(self, run: Run, options: argparse.Namespace) -> None:
        raise NotImplementedError


class CancelRun(_OfRuns):
    """Cancel runs that are queued or under way."""

    examples = ("run cancel 3f2a",)

    def one(self, run: Run, options: argparse.Namespace) -> None:  # noqa: ARG002
        self.client.runs.cancel(run.backupjob_id, run.id)
        self.say(f"run {run.id} is being cancelled")


class DeleteRun(_OfRuns):
    """Delete restore points. Those that build on them stay whole."""

    examples = ("run delete 3f2a 77b1", "run delete 3f2a --job nightly --wait")

    def options(self, parser: argparse.ArgumentParser) -> None:
        super().options(parser)
        parser.add_argument("--wait", action="store_true", help="until nothing is left of them")

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        if "latest" in parsed_args.runs:
            raise errors.WrongUse("`latest` is not taken for a deletion", "Name the run by its id (`raksha run list`).")
        return super().take_action(parsed_args)

    def one(self, run: Run, options: argparse.Namespace) -> None:
        self.client.runs.delete(run.backupjob_id, run.id)
        if not options.wait:
            self.say(f"run {run.id} is being deleted")
            return
        gone(lambda: self.client.runs.get(run.backupjob_id, run.id), f"Run {run.id}")
        self.say(f"run {run.id} is deleted")
