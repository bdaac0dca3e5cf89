"""`job …`: what is protected, and when."""

from __future__ import annotations

import argparse
import time
from typing import Any

from raksha.client import errors, scheduling, words
from raksha.client.commands import columns, job_options
from raksha.client.commands.base import Action, List, Show, listed
from raksha.client.records import Job

STATES = ("active", "paused", "suspended", "deleting")
_NAME_OR_ID = "name or id"


class ListJobs(List):
    """List the backup jobs."""

    examples = (
        "job list",
        "job list --state suspended",
        "job list --vm web -f json",
        "job list --sort name --limit 20",
    )
    sorts = ("id", "name", "state", "created_at", "updated_at")

    def options(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--state", action="append", choices=STATES, help="only these; may be repeated")
        parser.add_argument("--name", help="only those with this name")
        parser.add_argument("--vm", metavar="VM", help="only those that name this VM (name or id)")
        self.paging(parser)

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        vm = self.client.vms.find(parsed_args.vm).id if parsed_args.vm else None
        found = self.client.jobs.list(state=parsed_args.state, name=parsed_args.name, vm_id=vm, **listed(parsed_args))
        names = ("ID", "Name", "State", "VMs", "Schedule", "Next run")
        return self.table(names, (
            (job.id, columns.text(job.name), job.state, _counted(job), scheduling.brief(job.schedule),
             columns.moment(job.next_run_at)) for job in found
        ))  # fmt: skip


def _counted(job: Job) -> Any:
    return "by tag" if job.vm_selector else len(job.vms) + len(job.volumes)


class OneJob(Show):
    """Shows what becomes of a job."""

    def shown(self, job: Job) -> tuple[tuple[str, ...], tuple[Any, ...]]:
        names = self._names(job)
        vms = [_member(names.get(vm.id, vm.id), vm) for vm in job.vms]
        kept = job_options.known(job.retention)
        reason = job.state_reason.message if job.state_reason else None
        missed = job.last_missed_reason.message if job.last_missed_reason else None
        return self.fields({
            "id": job.id,
            "name": columns.text(job.name),
            "description": columns.text(job.description),
            "state": job.state,
            "state_reason": columns.text(reason),
            "vms": columns.lines(job.vms, vms),
            "volumes": columns.lines(job.volumes, [each.id for each in job.volumes]),
            "vm_selector": columns.lines(job.vm_selector, _pairs(job_options.known(job.vm_selector))),
            "schedule": columns.lines(job.schedule, self._schedule(job)),
            "next_run_at": columns.moment(job.next_run_at),
            "missed_runs": job.missed_runs,
            "last_missed_at": columns.moment(job.last_missed_at),
            "last_missed_reason": columns.text(missed),
            "retention": columns.lines(job.retention, _pairs({k: v for k, v in kept.items() if v}) or ["everything"]),
            "quiesce": job.quiesce,
            "engine": job.engine,
            "consistency_group": columns.yes(job.consistency_group),
            "on_vm_failure": job.on_vm_failure,
            "retry": columns.lines(job.retry, _pairs(job_options.known(job.retry))),
            "bandwidth_limit": columns.size(job.bandwidth_limit),
            "max_parallel_disks": job.max_parallel_disks,
            "placement": columns.lines(job.placement, _pairs(job_options.known(job.placement))),
            "test_restore": columns.lines(job.test_restore, _pairs(job_options.known(job.test_restore))),
            "proven_restorable_at": columns.moment(job.proven_restorable_at),
            "proven_run_id": columns.text(job.proven_run_id),
            "metadata": columns.lines(job.metadata, _pairs(job.metadata)),
            "vault_service_id": columns.text(job.vault_service_id),
            "created_at": columns.moment(job.created_at),
            "updated_at": columns.moment(job.updated_at),
            "user_id": columns.text(job.user_id),
            "project_id": job.project_id,
        })  # fmt: skip

    def _names(self, job: Job) -> dict[str, str]:
        """Of its VMs. What shows a job does not fail because nobody knows what its VMs are called."""
        if not job.vms:
            return {}
        try:
            return {vm.id: vm.name for vm in self.client.vms.list()}
        except errors.ClientError:
            return {}

    def _schedule(self, job: Job) -> list[str]:
        if job.schedule is None:
            return ["by hand"]
        try:
            return [self.client.previews.schedule(job_options.known(job.schedule), count=1).in_words]
        except errors.ClientError:
            return [scheduling.brief(job.schedule)]

    def names(self) -> job_options.Names:
        client = self.client
        return job_options.Names(lambda text: client.vms.find(text).id, lambda text: client.vaults.find(text).id)


def _member(name: str, vm: Any) -> str:
    notes = [f"without {', '.join(vm.excluded_disks)}"] if vm.excluded_disks else []
    notes += ["from storage"] if vm.source == "storage" else []
    return f"{name} ({'; '.join(notes)})" if notes else name


def _pairs(found: dict[str, Any]) -> list[str]:
    return [f"{key}: {', '.join(map(str, value)) if isinstance(value, list | tuple) else value}"
            for key, value in found.items()]  # fmt: skip


class ShowJob(OneJob):
    """Show a backup job."""

    examples = ("job show nightly", "job show nightly -f json", "job show nightly -c schedule -c next_run_at")

    def options(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("job", metavar="JOB", help=_NAME_OR_ID)

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        return self.shown(self.client.jobs.find(parsed_args.job))


class CreateJob(OneJob):
    """Create a backup job."""

    examples = (
        "job create nightly --vm web --vm db --exclude db:vdb --every day --at 02:00 --timezone Europe/Paris "
        "--keep-daily 7 --keep-weekly 4 --quiesce",
        "job create often --vm web --every 6h --keep-last 12",
        "job create weekly --tag gold --every sunday --at 22:30 --keep-weekly 8",
        "job create workdays --vm web --cron '30 22 * * 1-5' --full-cron '30 22 * * 0'",
        "job create 'by hand' --vm web",
    )

    def options(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("name", metavar="NAME", help="of the new job")
        job_options.add_members(parser)
        job_options.add_schedule(parser)
        job_options.add_retention(parser)
        job_options.add_how(parser)
        parser.add_argument("--paused", action="store_true", help="its schedule does not fire until `job resume`")

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        names = self.names()
        body = {**job_options.how(parsed_args, names)}
        if (schedule := job_options.schedule(parsed_args)) is not None:
            body["schedule"] = schedule
        retention = job_options.retention(parsed_args, (schedule or {}).get("zone"))
        if retention is not None:
            body["retention"] = retention
        if parsed_args.paused:
            body["enabled"] = False
        body |= job_options.members(parsed_args, names)
        return self.shown(self.client.jobs.create(parsed_args.name, **body))


class SetJob(OneJob):
    """Change a backup job; what is not named stays."""

    examples = (
        "job set nightly --every day --at 03:30",
        "job set nightly --add-vm mail --exclude mail:vdc",
        "job set nightly --keep-monthly 12 --no-bandwidth-limit",
        "job set nightly --no-schedule",
    )

    def options(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("job", metavar="JOB", help=_NAME_OR_ID)
        parser.add_argument("--name", help="its new name")
        group = parser.add_argument_group("what is protected")
        group.add_argument(
            "--add-vm", metavar="VM", action="append", default=[], help="may be repeated, as all of these"
        )
        group.add_argument("--remove-vm", metavar="VM", action="append", default=[])
        group.add_argument("--exclude", metavar="VM:DISK", action="append", default=[], help="leave this disk out")
        group.add_argument("--include", metavar="VM:DISK", action="append", default=[], help="no longer leave it out")
        group.add_argument("--tag", metavar="TAG", action="append", help="in the place of those it has")
        group.add_argument("--having", metavar="KEY=VALUE", action="append", help="in the place of those it has")
        job_options.add_schedule(parser)
        job_options.add_retention(parser)
        job_options.add_how(parser)
        group = parser.add_argument_group("what is taken away")
        group.add_argument("--no-schedule", action="store_true", help="by hand only")
        group.add_argument("--no-retention", action="store_true", help="keep everything")
        group.add_argument("--no-bandwidth-limit", action="store_true")
        group.add_argument("--no-selector", action="store_true", help="only VMs that are named")
        group.add_argument("--no-placement", action="store_true")

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        job = self.client.jobs.find(parsed_args.job)
        changes = self._changes(parsed_args, job)
        if not changes:
            raise errors.WrongUse("Nothing is named to be changed", "`raksha job set --help` shows what can be.")
        return self.shown(self.client.jobs.update(job.id, etag=job.etag, **changes))

    def _changes(self, options: argparse.Namespace, job: Job) -> dict[str, Any]:
        names = self.names()
        changes = {**job_options.how(options, names, job), **self._members(options, names, job)}
        if options.name is not None:
            changes["name"] = options.name
        had = job_options.known(job.schedule)
        if (schedule := job_options.schedule(options, had)) is not None:
            changes["schedule"] = schedule
        zone = (schedule or had).get("zone")
        if (retention := job_options.retention(options, zone, job_options.known(job.retention))) is not None:
            changes["retention"] = retention
        if (selector := job_options.selector(options)) is not None:
            changes["vm_selector"] = selector
        gone = {"schedule": options.no_schedule, "retention": options.no_retention, "placement": options.no_placement,
                "bandwidth_limit": options.no_bandwidth_limit, "vm_selector": options.no_selector}  # fmt: skip
        for field, asked in gone.items():
            if asked and field in changes:
                raise errors.WrongUse(
                    f"The {field.replace('_', ' ')} is both set and taken away", "Name one of the two."
                )
            if asked:
                changes[field] = None
        return changes

    def _members(self, options: argparse.Namespace, names: job_options.Names, job: Job) -> dict[str, Any]:
        if not (options.add_vm or options.remove_vm or options.exclude or options.include):
            return {}
        by_id = {vm.id: job_options.known(vm) for vm in job.vms}
        for text in options.add_vm:
            by_id.setdefault(id := names.vm(text), {"id": id})
        for text in options.remove_vm:
            # one that is no more has no name that anybody knows
            id = text if text in by_id else names.vm(text)
            if by_id.pop(id, None) is None:
                raise errors.WrongUse(f"--remove-vm {text}: it is not in the job", "`raksha job show` tells what is.")
        job_options.exclude(by_id, options.exclude, names)
        for text in options.include:
            vm, disk = job_options.vm_and_disk(text, "--include")
            member = by_id.get(names.vm(vm), {})
            if disk not in member.get("excluded_disks", ()):
                raise errors.WrongUse(f"--include {text}: it is not left out", "`raksha job show` tells what is.")
            member["excluded_disks"] = [each for each in member["excluded_disks"] if each != disk]
        return {"vms": list(by_id.values())}


class _OfJobs(Action):
    """Does one thing with each of several jobs."""

    def options(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("jobs", metavar="JOB", nargs="+", help=_NAME_OR_ID)

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        return self.each("job", parsed_args.jobs, lambda name: self.one(self.client.jobs.find(name), parsed_args))

    def one(self, job: Job, options: argparse.Namespace) -> None:
        raise NotImplementedError


class PauseJob(_OfJobs):
    """Let the schedule of jobs not fire until they are resumed; they can still be run by hand."""

    examples = ("job pause nightly", "job pause nightly weekly")

    def one(self, job: Job, options: argparse.Namespace) -> None:  # noqa: ARG002
        self.client.jobs.update(job.id, etag=job.etag, enabled=False)
        self.say(f"job {job.name} is paused; `raksha job resume {job.name}` ends that")


class ResumeJob(_OfJobs):
    """Let the schedule of paused or suspended jobs fire again."""

    examples = ("job resume nightly",)

    def one(self, job: Job, options: argparse.Namespace) -> None:  # noqa: ARG002
        found = self.client.jobs.update(job.id, etag=job.etag, enabled=True)
        when = f"; next run {words.human_moment(found.next_run_at)}" if found.next_run_at else ""
        self.say(f"job {job.name} is active{when}")


class TakeOverJob(_OfJobs):
    """Let jobs act for you from now on, as their owner left or what they were trusted with is broken."""

    examples = ("job take-over nightly",)

    def one(self, job: Job, options: argparse.Namespace) -> None:  # noqa: ARG002
        found = self.client.jobs.take_over(job.id)
        self.say(f"job {job.name} acts for you now; it is {found.state}")


class DeleteJob(_OfJobs):
    """Delete backup jobs."""

    examples = ("job delete nightly", "job delete nightly weekly --with-runs --wait")

    def options(self, parser: argparse.ArgumentParser) -> None:
        super().options(parser)
        parser.add_argument("--with-runs", action="store_true", help="and all their restore points")
        parser.add_argument("--wait", action="store_true", help="until nothing is left of them")

    def one(self, job: Job, options: argparse.Namespace) -> None:
        self.client.jobs.delete(job.id, with_runs=options.with_runs)
        if not options.wait:
            self.say(f"job {job.name} is being deleted")
            return
        gone(lambda: self.client.jobs.get(job.id), f"Job {job.name}")
        self.say(f"job {job.name} is deleted")


def gone(look: Any, what: str) -> None:
    """Wait until it is not there any more. Raises `Interrupted`."""
    try:
        while True:
            look()
            time.sleep(1.0)
    except errors.NotFound:
        return
    except KeyboardInterrupt:
        raise errors.Interrupted("Waiting ended", f"{what} is being deleted all the same.") from None


class RetentionPreview(List):
    """Tell what a retention would keep of a job's runs, and why. Nothing is deleted."""

    examples = ("job retention-preview nightly", "job retention-preview nightly --keep-daily 7 --keep-monthly 6")

    def options(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("job", metavar="JOB", help=_NAME_OR_ID)
        job_options.add_retention(parser)

    def take_action(self, parsed_args: argparse.Namespace) -> Any:
        job = self.client.jobs.find(parsed_args.job)
        zone = job.schedule.zone if job.schedule else None
        found = self.client.previews.retention(job.id, job_options.retention(parsed_args, zone))
        self.say(f"{found.kept} stay, {found.deleted} go")
        return self.table(("Run", "Taken", "Stays", "Protected", "Why"), (
            (each.backupjobrun_id, columns.moment(each.taken_at), columns.yes(each.kept), columns.yes(each.protected),
             columns.several(each.reasons)) for each in found.decisions
        ))  # fmt: skip
