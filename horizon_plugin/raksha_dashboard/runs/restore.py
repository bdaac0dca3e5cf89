"""Restoring from a run: what, and where to. What is not said is as it was when the copy was taken."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django.core.exceptions import ValidationError
from django.utils.translation import gettext as _now
from django.utils.translation import gettext_lazy as _
from horizon import exceptions, forms, workflows
from openstack_dashboard import api

from raksha.client import errors
from raksha.client.records import Run
from raksha_dashboard import fields, words
from raksha_dashboard.api import client, message, token_in

KINDS = (
    ("server", _("New server")), ("volume", _("New volumes, one of each disk")),
    ("image", _("Images, one of each disk")), ("in_place", _("Over the server as it is; it must be shut off")),
)  # fmt: skip
#: what another project can get
_ELSEWHERE = ("server", "volume", "image")
_AS_IT_WAS, _NONE = "", "-"
_NETWORKS = _("Networks (none chosen: as it was)")


def asked(values: Any, run: Run) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Target and VMs for the API. `values`: of the form, cleaned or as a browser sends them."""
    many = values.getlist if hasattr(values, "getlist") else lambda name: values.get(name) or []
    kind = values.get("kind") or "server"
    target: dict[str, Any] = {"kind": kind}
    if kind == "server":
        target["start"] = bool(values.get("start"))
        if values.get("flavor"):
            target["flavor"] = values["flavor"]
        if values.get("key_name"):
            target["key_name"] = "" if values["key_name"] == _NONE else values["key_name"]
        if networks := many("networks"):
            target["networks"] = [{"network_id": each} for each in networks]
    if kind in _ELSEWHERE and values.get("project"):
        target["project"] = values["project"]
    if kind in ("server", "volume") and values.get("volume_type"):
        target["volume_type"] = values["volume_type"]
    chosen = many("disks")
    vms = []
    for vm in run.vms or ():
        there = [disk.resource for disk in vm.resources]
        disks = [name for name in there if f"{vm.vm_id}/{name}" in chosen]
        if not disks:
            continue
        wanted: dict[str, Any] = {"id": vm.vm_id}
        if len(disks) < len(there):
            wanted["disks"] = disks
        name = (values.get(f"name_{vm.vm_id}") or "").strip()
        if name and kind != "in_place":
            wanted["name"] = name
        vms.append(wanted)
    return target, vms


def token(request: Any, target: Mapping[str, Any]) -> str | None:
    """For the project that it goes into, where that is another one. Raises `ClientError`."""
    return token_in(request, target["project"]) if "project" in target else None


class WhatAction(workflows.Action):
    job_id = forms.CharField(widget=forms.HiddenInput())
    run_id = forms.CharField(widget=forms.HiddenInput())
    disks = forms.MultipleChoiceField(label=_("Disks"), error_messages={"required": _("Choose one disk at least.")})

    class Meta:
        name = _("What")
        slug = "what"

    def __init__(self, request: Any, context: Mapping[str, Any], *args: Any, **kwargs: Any) -> None:
        self.run: Run = context["run"]
        super().__init__(request, context, *args, **kwargs)
        for vm in self.run.vms or ():
            self.fields[f"name_{vm.vm_id}"] = forms.RegexField(
                r"^[A-Za-z0-9_+@][A-Za-z0-9._+@ -]*$", label=_now("New name of %s") % words.vm_name(vm),
                required=False, max_length=200, initial=f"{words.vm_name(vm)}-restored",
            )  # fmt: skip

    def populate_disks_choices(self, _request: Any, context: Mapping[str, Any]) -> list[tuple[str, str]]:
        run = context["run"]
        values = [f"{vm.vm_id}/{disk.resource}" for vm in run.vms or () for disk in vm.resources]
        return [(value, value) for value in values]

    def rows(self) -> list[dict[str, Any]]:
        chosen = set(self["disks"].value() or ())
        return [
            {
                "name": words.vm_name(vm), "field": self[f"name_{vm.vm_id}"],
                "disks": [
                    (value, disk.resource, words.size(disk.size), value in chosen)
                    for disk in vm.resources
                    for value in (f"{vm.vm_id}/{disk.resource}",)
                ],
            }
            for vm in self.run.vms or ()
        ]  # fmt: skip


class What(workflows.Step):
    action_class = WhatAction
    depends_on = ("run",)
    contributes = ("job_id", "run_id", "disks")
    template_name = "raksha_dashboard/step_restore_what.html"

    def contribute(self, data: dict[str, Any], context: dict[str, Any]) -> dict[str, Any]:
        context = super().contribute(data, context)
        # the names of new servers have fields of their own, which no step can declare
        context.update({name: value for name, value in (data or {}).items() if name.startswith("name_")})
        return context


class WhereAction(workflows.Action):
    kind = forms.ChoiceField(label=_("Restore to"), choices=KINDS, widget=forms.Select(attrs=fields.switch("kind")))
    project = forms.ChoiceField(
        label=_("Project"), required=False,
        widget=forms.Select(attrs=fields.shown_for("kind", _ELSEWHERE, _("Project"))),
    )  # fmt: skip
    flavor = forms.ChoiceField(
        label=_("Flavor"), required=False, widget=forms.Select(attrs=fields.shown_for("kind", ("server",), _("Flavor")))
    )
    networks = forms.MultipleChoiceField(
        label=_NETWORKS, required=False,
        widget=forms.SelectMultiple(attrs=fields.shown_for("kind", ("server",), _NETWORKS)),
    )  # fmt: skip
    key_name = forms.ChoiceField(
        label=_("Key pair"), required=False,
        widget=forms.Select(attrs=fields.shown_for("kind", ("server",), _("Key pair"))),
    )  # fmt: skip
    volume_type = forms.ChoiceField(
        label=_("Volume type"), required=False,
        widget=forms.Select(attrs=fields.shown_for("kind", ("server", "volume"), _("Volume type"))),
    )  # fmt: skip
    start = forms.BooleanField(label=_("Let it run afterwards (a new server only)"), required=False, initial=True)

    class Meta:
        name = _("Where to")
        slug = "where"

    def _had(self, context: Mapping[str, Any], read: Any) -> str:
        """What the servers of the run had, where all had the same."""
        said = {read(vm.server) for vm in context["run"].vms or () if vm.server}
        return said.pop() if len(said) == 1 else ""

    def _choices(self, what: Any, had: str, ask: Any) -> list[tuple[str, Any]]:
        first = _now("As it was (%s)") % had if had else _now("As it was")
        try:
            return [(_AS_IT_WAS, first), *ask()]
        except Exception:
            exceptions.handle(self.request if hasattr(self, "request") else None, what)
            return [(_AS_IT_WAS, first)]

    def populate_project_choices(self, request: Any, _context: Mapping[str, Any]) -> list[tuple[str, Any]]:
        mine = request.user.tenant_id
        others = [(each.id, each.name) for each in request.user.authorized_tenants if each.id != mine]
        return [(_AS_IT_WAS, _now("This one")), *sorted(others, key=lambda pair: pair[1])]

    def populate_flavor_choices(self, request: Any, context: Mapping[str, Any]) -> list[tuple[str, Any]]:
        had = self._had(context, lambda server: (server.get("flavor") or {}).get("name", ""))
        return self._choices(
            _("Flavors could not be read."), had,
            lambda: [(each.id, each.name) for each in sorted(api.nova.flavor_list(request), key=lambda f: f.name)],
        )  # fmt: skip

    def populate_networks_choices(self, request: Any, _context: Mapping[str, Any]) -> list[tuple[str, Any]]:
        try:
            found = api.neutron.network_list_for_tenant(request, request.user.tenant_id)
        except Exception:
            exceptions.handle(request, _("Networks could not be read."))
            return []
        return [(each.id, each.name_or_id) for each in found]

    def populate_key_name_choices(self, request: Any, context: Mapping[str, Any]) -> list[tuple[str, Any]]:
        had = self._had(context, lambda server: server.get("key_name") or "")
        return self._choices(
            _("Key pairs could not be read."), had,
            lambda: [(_NONE, _now("None")), *((each.name, each.name) for each in api.nova.keypair_list(request))],
        )  # fmt: skip

    def populate_volume_type_choices(self, request: Any, _context: Mapping[str, Any]) -> list[tuple[str, Any]]:
        return self._choices(
            _("Volume types could not be read."), "",
            lambda: [(each.name, each.name) for each in api.cinder.volume_type_list(request)],
        )  # fmt: skip


class Where(workflows.Step):
    action_class = WhereAction
    depends_on = ("run", "job_id", "run_id")
    contributes = ("kind", "project", "flavor", "networks", "key_name", "volume_type", "start")
    template_name = "raksha_dashboard/step_restore_where.html"


class RestoreRun(workflows.Workflow):
    slug = "restore"
    name = _("Restore")
    finalize_button_name = _("Restore")
    success_message = _("The restore has begun.")
    failure_message = _("The restore could not be started.")
    success_url = "horizon:project:protection_restores:index"
    default_steps = (What, Where)

    def get_entry_point(self) -> str:
        return fields.entry_point(self)

    def handle(self, request: Any, context: Any) -> bool:
        run = context["run"]
        target, vms = asked(context, run)
        try:
            there = token(request, target)
            self.object = client(request).restores.create(run.backupjob_id, run.id, target, vms, target_token=there)
        except errors.ClientError as error:
            said = message(_("The restore was not started."), error)
            fields.show_error(self, "where", said)
            raise ValidationError(said) from error
        return True
