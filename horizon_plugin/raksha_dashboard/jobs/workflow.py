"""Creating and changing a job: what, when, how long it is kept, how consistent it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple
from zoneinfo import available_timezones

import msgspec
from django.core.exceptions import ValidationError
from django.utils.translation import gettext as _now
from django.utils.translation import gettext_lazy as _
from horizon import forms, workflows

from raksha.client import errors
from raksha_dashboard import fields, schedules, words
from raksha_dashboard.api import client, message, told


class DiskChoice(NamedTuple):
    value: str
    name: str
    about: str
    left_out: bool


class VmChoice(NamedTuple):
    """A row of the step: a VM with its disks."""

    id: str
    name: str
    problem: str
    chosen: bool
    disks: Sequence[DiskChoice]


class WhatAction(workflows.Action):
    job_id = forms.CharField(required=False, widget=forms.HiddenInput())
    etag = forms.CharField(required=False, widget=forms.HiddenInput())
    name = forms.CharField(label=_("Name"), max_length=255, widget=forms.TextInput(attrs={"autofocus": "autofocus"}))
    description = forms.CharField(label=_("Description"), required=False, max_length=1000)
    vms = forms.MultipleChoiceField(label=_("Virtual machines"), error_messages={"required": _("Choose one at least.")})
    excluded = forms.MultipleChoiceField(label=_("Disks that are left out"), required=False)

    class Meta:
        name = _("What")
        slug = "what"

    def __init__(self, request: Any, context: Any, *args: Any, **kwargs: Any) -> None:
        found: list[Any] = []
        with told(request, _("The virtual machines could not be read.")):
            found = sorted(client(request).vms.list(), key=lambda vm: vm.name)
        self._found = found
        self._before = list(context.get("vms") or ())
        super().__init__(request, context, *args, **kwargs)

    def populate_vms_choices(self, _request: Any, context: Any) -> list[tuple[str, str]]:
        # those that the job has although they are gone stay in it until somebody takes them out
        known = {vm.id: vm.name for vm in self._found}
        return list(known.items()) + [(id, id) for id in context.get("vms") or () if id not in known]

    def populate_excluded_choices(self, _request: Any, context: Any) -> list[tuple[str, str]]:
        values = [f"{vm.id}/{disk.target}" for vm in self._found for disk in vm.disks]
        values += [value for value in context.get("excluded") or () if value not in values]
        return [(value, value) for value in values]

    def rows(self) -> list[VmChoice]:
        chosen, excluded = set(self["vms"].value() or ()), set(self["excluded"].value() or ())
        rows = []
        for vm in self._found:
            disks = [
                DiskChoice(value, disk.target, words.size(disk.size), value in excluded)
                for disk in vm.disks
                for value in (f"{vm.id}/{disk.target}",)
            ]
            rows.append(VmChoice(vm.id, vm.name, words.said(vm.refusal), vm.id in chosen, disks))
        known = {vm.id for vm in self._found}
        gone = [id for id in self._before if id not in known]
        rows += [VmChoice(id, id, _now("It does not exist any more."), id in chosen, ()) for id in gone]
        return rows


class What(workflows.Step):
    action_class = WhatAction
    contributes = ("job_id", "etag", "name", "description", "vms", "excluded")
    template_name = "raksha_dashboard/step_what.html"


_CLOCK = (schedules.DAILY, schedules.WEEKDAYS, schedules.WEEKLY)
_TIMED = (*_CLOCK, schedules.HOURS, schedules.CRON)


class WhenAction(workflows.Action):
    often = forms.ChoiceField(
        label=_("How often"), choices=schedules.OFTEN, widget=forms.Select(attrs=fields.switch("often"))
    )
    weekday = forms.ChoiceField(
        label=_("On"), choices=schedules.DAYS, required=False,
        widget=forms.Select(attrs=fields.shown_for("often", (schedules.WEEKLY,), _("On"))),
    )  # fmt: skip
    at = forms.TimeField(
        label=_("At"), required=False,
        widget=forms.TimeInput(format="%H:%M", attrs=fields.shown_for("often", _CLOCK, _("At"), type="time")),
    )  # fmt: skip
    hours = fields.number("often", (schedules.HOURS,), _("Hours between two runs"), least=1, most=720)
    cron = forms.CharField(
        label=_("Cron expression"), required=False, max_length=200,
        help_text=_("Minute, hour, day of month, month, day of week: 30 22 * * 1-5"),
        widget=forms.TextInput(attrs=fields.shown_for("often", (schedules.CRON,), _("Cron expression"))),
    )  # fmt: skip
    zone = forms.ChoiceField(
        label=_("Time zone"), required=False,
        widget=forms.Select(attrs=fields.shown_for("often", _TIMED, _("Time zone"))),
    )  # fmt: skip
    full = forms.ChoiceField(
        label=_("Full backups"), choices=schedules.FULL, required=False,
        widget=forms.Select(attrs=fields.switch("full")),
    )  # fmt: skip
    full_every = fields.number("full", (schedules.RUNS,), _("One of so many runs is full"), least=1, most=1000)
    full_cron = forms.CharField(
        label=_("Cron expression of full backups"), required=False, max_length=200,
        widget=forms.TextInput(attrs=fields.shown_for("full", (schedules.CRON,), _("Cron expression of full backups"))),
    )  # fmt: skip

    class Meta:
        name = _("When")
        slug = "when"

    def populate_zone_choices(self, _request: Any, context: Any) -> list[tuple[str, str]]:
        zones = sorted({"UTC", context.get("zone") or "UTC", *available_timezones()})
        return [(zone, zone) for zone in zones]

    def clean(self) -> dict[str, Any]:
        values = super().clean()
        often = values.get("often")
        needed = {schedules.HOURS: "hours", schedules.CRON: "cron", **dict.fromkeys(_CLOCK, "at")}.get(often)
        # 00:00 is a time as well
        if needed and needed not in self.errors and values.get(needed) in (None, ""):
            self.add_error(needed, _("This field is required."))
        needed = {schedules.RUNS: "full_every", schedules.CRON: "full_cron"}.get(values.get("full"))
        if needed and often != schedules.HAND and needed not in self.errors and not values.get(needed):
            self.add_error(needed, _("This field is required."))
        body = schedules.from_form(values) if not self.errors else None
        if body is not None:
            try:
                client(self.request).previews.schedule(body, count=1)
            except errors.InvalidRequest as error:
                raise ValidationError(message("", error).strip()) from error
            except errors.ClientError:
                # whether the service is there, creating the job will say
                return values
        return values


class When(workflows.Step):
    action_class = WhenAction
    contributes = ("often", "weekday", "at", "hours", "cron", "zone", "full", "full_every", "full_cron")
    template_name = "raksha_dashboard/step_when.html"


class KeepAction(workflows.Action):
    keep = forms.ChoiceField(
        label=_("What is kept"), widget=forms.Select(attrs=fields.switch("keep")),
        choices=(("some", _("What these rules want, whatever is older goes")), ("all", _("Everything"))),
    )  # fmt: skip
    keep_last = fields.number("keep", ("some",), _("The newest"), most=100000)
    hourly = fields.number("keep", ("some",), _("Hourly: the newest of each of so many hours"), most=100000)
    daily = fields.number("keep", ("some",), _("Daily: the newest of each of so many days"), most=100000)
    weekly = fields.number("keep", ("some",), _("Weekly: the newest of each of so many weeks"), most=100000)
    monthly = fields.number("keep", ("some",), _("Monthly: the newest of each of so many months"), most=100000)
    yearly = fields.number("keep", ("some",), _("Yearly: the newest of each of so many years"), most=100000)

    class Meta:
        name = _("How long")
        slug = "keep"

    def clean(self) -> dict[str, Any]:
        values = super().clean()
        if values.get("keep") == "some" and not self.errors and not any(values.get(rule) for rule in schedules.RULES):
            raise ValidationError(_("Give one rule at least, or keep everything."))
        return values


class Keep(workflows.Step):
    action_class = KeepAction
    contributes = ("keep", *schedules.RULES)
    template_name = "raksha_dashboard/step_keep.html"


class HowAction(workflows.Action):
    quiesce = forms.ChoiceField(label=_("File systems of the guests"), choices=tuple(words.QUIESCE.items()))
    consistency_group = forms.BooleanField(
        label=_("All virtual machines of the job at one instant"), required=False, initial=True
    )
    on_vm_failure = forms.ChoiceField(
        label=_("If one of them cannot be backed up"),
        choices=(("abort", _("The whole run fails")), ("degrade", _("The run goes on without it"))),
    )

    class Meta:
        name = _("Consistency")
        slug = "how"
        help_text = _(
            "Where the guest agent answers, file systems are frozen for the moment of the snapshot (well below a "
            "second), so that applications find their data in order. Otherwise a copy is what a power cut would leave."
        )


class How(workflows.Step):
    action_class = HowAction
    contributes = ("quiesce", "consistency_group", "on_vm_failure")


class _JobWorkflow(workflows.Workflow):
    default_steps = (What, When, Keep, How)
    success_url = "horizon:project:backup_jobs:index"

    def format_status_message(self, message: Any) -> str:
        return message % {"name": self.context.get("name", "")}

    def get_entry_point(self) -> str:
        return fields.entry_point(self)

    def handle(self, request: Any, context: Any) -> bool:
        try:
            self.object = self.write(client(request), context)
        except errors.ChangedMeanwhile as error:
            self._refuse(_("Somebody else changed the job meanwhile."), error)
        except errors.ClientError as error:
            self._refuse(_("The job was not saved."), error)
        return True

    def write(self, service: Any, context: Any) -> Any:
        raise NotImplementedError

    def _refuse(self, what: Any, error: errors.ClientError) -> None:
        """The form stays as it is, with the reason."""
        said = message(what, error)
        fields.show_error(self, "what", said)
        raise ValidationError(said) from error

    def members(self, context: Any, before: Any = None) -> list[dict[str, Any]]:
        """Each VM that was chosen. What the form does not know of one (its source) stays."""
        known = {vm.id: vm for vm in before.vms} if before is not None else {}
        made = []
        for id in context["vms"]:
            disks = [value.partition("/")[2] for value in context.get("excluded") or () if value.startswith(f"{id}/")]
            vm: dict[str, Any] = {"id": id, "excluded_disks": disks}
            if id in known and known[id].source != "hypervisor":
                vm |= {"source": known[id].source, "force": known[id].force}
            made.append(vm)
        return made


def _common(context: Any) -> dict[str, Any]:
    names = ("name", "quiesce", "on_vm_failure")
    return {
        **{name: context[name] for name in names}, "description": context.get("description") or "",
        "consistency_group": bool(context.get("consistency_group")),
        "retention": schedules.retention_from_form(context),
    }  # fmt: skip


class CreateJob(_JobWorkflow):
    slug = "create_job"
    name = _("Create Backup Job")
    finalize_button_name = _("Create")
    success_message = _('Created backup job "%(name)s".')
    failure_message = _('The backup job "%(name)s" could not be created.')

    def write(self, service: Any, context: Any) -> Any:
        body = {**_common(context), "schedule": schedules.from_form(context), "vms": self.members(context)}
        return service.jobs.create(**{name: value for name, value in body.items() if value is not None})


class UpdateJob(_JobWorkflow):
    slug = "update_job"
    name = _("Edit Backup Job")
    finalize_button_name = _("Save")
    success_message = _('Saved backup job "%(name)s".')
    failure_message = _('The backup job "%(name)s" could not be saved.')

    def write(self, service: Any, context: Any) -> Any:
        before = service.jobs.get(context["job_id"])
        was = msgspec.to_builtins(before.schedule) if before.schedule is not None else None
        body = {
            **_common(context), "schedule": schedules.from_form(context, was), "vms": self.members(context, before)
        }  # fmt: skip
        return service.jobs.update(before.id, etag=context.get("etag") or None, **body)
