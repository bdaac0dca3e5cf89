"""`verification …`: whether restore points still hold what was stored."""

from __future__ import annotations

import argparse
from typing import Any

from raksha.client import errors, naming, words
from raksha.client.commands import columns
from raksha.client.commands.base import Action, List, Show, listed
from raksha.client.commands.run import find_run
from raksha.client.records import Verification

STATES = ("queued", "running", "done", "cancelled", "error")
_VERIFICATION = "id, or the beginning of one"


class ListVerifications(List):
    """List the verifications, and how much they found."""

    examples = ("verification list", "verification list --job nightly --sort created_at:desc --limit 10")
    sorts = ("id", "state", "created_at")

    def options(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--state", action="append", choices=STATES, help="only these; may be repeated")
        parser.add_argument("--job", metavar="JOB", help="only those of this job and its restore points")
        self.paging(parser)

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        job = self.client.jobs.find(parsed_args.job).id if parsed_args.job else None
        found = self.client.verifications.list(state=parsed_args.state, backupjob_id=job, **listed(parsed_args))
        return self.table(("ID", "State", "Job", "Run", "Read", "Findings", "Healed", "Begun", "Ended"), (
            (each.id, each.state, each.backupjob_id, columns.text(each.backupjobrun_id),
             _looked_at(each), len(each.unproven) if each.boot else len(each.findings),
             len(each.healed), columns.moment(each.created_at), columns.moment(each.finished_at))
            for each in found
        ))  # fmt: skip


def _looked_at(each: Verification) -> Any:
    if each.boot:
        return "booted"
    return columns.Cell(each.percent if each.data else 0, lambda percent: f"{percent} %" if percent else "nothing")


class OneVerification(Show):
    """Shows a verification, and watches it."""

    def shown(self, found: Verification) -> tuple[tuple[str, ...], tuple[Any, ...]]:
        if found.unproven:
            self.trouble = errors.Failed(
                f"verification {found.id[:8]}: {len(found.unproven)} of {len(found.vms)} VMs are not proven to come up",
                "Their reasons are above. A restore with a console tells more: `raksha restore create --help`.",
            )
        if found.findings:
            self.trouble = errors.Failed(
                f"verification {found.id[:8]} found {len(found.findings)} damaged objects",
                "What they hit is degraded: `raksha run list --state degraded`. The next backup stores it again.",
            )
        return self.fields({
            "id": found.id,
            "state": found.state,
            "error": columns.lines(found.error, [found.error.message] if found.error else []),
            "backupjob_id": found.backupjob_id,
            "backupjobrun_id": columns.text(found.backupjobrun_id),
            "boot": columns.yes(found.boot),
            "vms": columns.lines(found.vms, [vm.line() for vm in found.vms]),
            "marker": columns.text(found.marker),
            "data": columns.yes(found.data),
            "percent": found.percent,
            "copies": found.copies,
            "findings": columns.lines(found.findings, [line for each in found.findings for line in each.lines()]),
            "healed": columns.lines(found.healed, list(found.healed)),
            "bytes_total": columns.size(found.progress.bytes_total),
            "bytes_done": columns.size(found.progress.bytes_done),
            "trigger": found.trigger,
            "created_at": columns.moment(found.created_at),
            "started_at": columns.moment(found.started_at),
            "finished_at": columns.moment(found.finished_at),
            "request_id": columns.text(found.request_id),
        })  # fmt: skip

    def to_the_end(self, found: Verification) -> Verification:
        """Raises `Interrupted`."""
        hint = f"The verification goes on: `raksha verification watch {found.id}` looks at it again."
        watched = self.client.verifications.watch(found.id)
        return self.follow(f"verification {found.id[:8]}", watched, ("done",), hint)


class ShowVerification(OneVerification):
    """Show a verification, and what it found. Exits non-zero if that is damage."""

    examples = ("verification show 3f2a", "verification show 3f2a -f json")

    def options(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("verification", metavar="VERIFICATION", help=_VERIFICATION)

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        return self.shown(self.client.verifications.find(parsed_args.verification))


class WatchVerification(OneVerification):
    """Watch a verification until it has ended. Ctrl-C ends the watching, not the verification."""

    examples = ("verification watch 3f2a",)

    def options(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("verification", metavar="VERIFICATION", help=_VERIFICATION)

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        return self.shown(self.to_the_end(self.client.verifications.find(parsed_args.verification)))


class CreateVerification(OneVerification):
    """Look whether restore points still hold what was stored: one of them, or all of a job. Or boot the VMs of one (of
    a job its newest) where they reach nobody, and see whether they come up: a test restore."""

    examples = (
        "verification create --job nightly --wait",
        "verification create --job nightly --run latest",
        "verification create --job nightly --percent 10",
        "verification create --job nightly --no-data",
        "verification create --job nightly --boot --wait",
        "verification create --job nightly --run latest --boot --vm web --marker 'login:' --boot-timeout 5m",
    )

    def options(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--job", metavar="JOB", help="all of its restore points, or the job of --run")
        parser.add_argument("--run", metavar="RUN", help="only this restore point")
        how = parser.add_mutually_exclusive_group()
        how.add_argument("--percent", metavar="N", type=int, default=100, help="how much of the data is read")
        how.add_argument("--no-data", action="store_true", help="only look whether everything is there")
        how.add_argument("--boot", action="store_true", help="a test restore: boot the VMs and see")
        parser.add_argument("--vm", metavar="VM", action="append", default=[],
                            help="with --boot: only this one (id or name); may be repeated")  # fmt: skip
        parser.add_argument("--marker", metavar="TEXT",
                            help="with --boot: on its serial console, where a VM has no guest agent")  # fmt: skip
        parser.add_argument("--boot-timeout", metavar="LENGTH", help="with --boot: that each VM has, such as 5m")
        parser.add_argument("--wait", action="store_true", help="until it has ended, with progress")

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        if parsed_args.run:
            run = find_run(self, parsed_args.run, parsed_args.job)
            found = self._begin(parsed_args, run.backupjob_id, run.id)
        elif parsed_args.job:
            found = self._begin(parsed_args, self.client.jobs.find(parsed_args.job).id, None)
        else:
            raise errors.WrongUse("Nothing is named to look at", "Add --job JOB, or --run RUN.")
        if not parsed_args.wait:
            self.say(f"it is {found.state}; `raksha verification watch {found.id}` shows how it goes on")
            return self.shown(found)
        return self.shown(self.to_the_end(found))

    def _begin(self, options: argparse.Namespace, job: str, run: str | None) -> Verification:
        """Raises `WrongUse`, `NoSuch`."""
        if options.boot:
            timeout = None if options.boot_timeout is None else words.length(options.boot_timeout, "--boot-timeout")
            vms = [text if naming.is_id(text) else self.client.vms.find(text).id for text in options.vm]
            return self.client.verifications.boot(job, run, vms=vms, marker=options.marker, timeout=timeout)
        if options.vm or options.marker is not None or options.boot_timeout is not None:
            raise errors.WrongUse("--vm, --marker and --boot-timeout are of a test restore", "Add --boot.")
        return self.client.verifications.create(job, run, data=not options.no_data, percent=options.percent)


class CancelVerification(Action):
    """Cancel verifications."""

    examples = ("verification cancel 3f2a",)

    def options(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("verifications", metavar="VERIFICATION", nargs="+", help=_VERIFICATION)

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        def do(text: str) -> None:
            found = self.client.verifications.cancel(self.client.verifications.find(text).id)
            self.say(f"verification {found.id} is being cancelled")

        return self.each("verification", parsed_args.verifications, do)
