"""Pages of restores."""

from __future__ import annotations

from typing import Any

from django.http import HttpResponse
from django.shortcuts import render
from django.urls import NoReverseMatch, reverse
from django.utils.functional import cached_property
from django.utils.translation import gettext as _now
from django.utils.translation import gettext_lazy as _
from django.views import View
from horizon import tables, views
from horizon.utils import functions

from raksha.client.records import Restore
from raksha_dashboard import words
from raksha_dashboard.api import client, told
from raksha_dashboard.restores.tables import RestoresTable, names

INDEX = "horizon:project:protection_restores:index"


class IndexView(tables.DataTableView):
    table_class = RestoresTable
    page_title = _("Restores")
    _more = False

    def get_data(self) -> list[Restore]:
        with told(self.request, _("The restores could not be read.")):
            page = client(self.request).restores.page(
                limit=functions.get_page_size(self.request), marker=self.request.GET.get("marker"),
                sort="created_at:desc",
            )  # fmt: skip
            self._more = page.marker is not None
            return list(page.entries)
        return []

    def has_more_data(self, _table: Any) -> bool:
        return self._more


class _OfRestore:
    request: Any
    kwargs: dict[str, Any]

    @cached_property
    def restore(self) -> Restore:
        with told(self.request, _("The restore could not be read."), redirect=reverse(INDEX)):
            return client(self.request).restores.get(self.kwargs["restore_id"])
        raise AssertionError


class DetailView(_OfRestore, views.HorizonTemplateView):
    template_name = "raksha_dashboard/restore.html"
    page_title = _("Restore of {{ when }}")

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        context = super().get_context_data(when=words.moment(self.restore.created_at), **kwargs)
        context["url"] = reverse(INDEX)
        context["actions"] = RestoresTable(self.request).render_row_actions(self.restore)
        return context | shown(self.restore)


class LiveView(_OfRestore, View):
    def get(self, request: Any, **_kwargs: Any) -> HttpResponse:
        return render(request, "raksha_dashboard/restore_live.html", shown(self.restore))


def shown(restore: Restore) -> dict[str, Any]:
    """What the templates need."""
    live = "horizon:project:protection_restores:live"
    return {
        "restore": restore, "state": words.badge(restore.state), "names": names(restore),
        "target": words.TARGETS.get(restore.target.kind, restore.target.kind),
        "bar": None if restore.ended else words.bar(restore.progress.percent, _("Progress of the restore")),
        "done": words.size(restore.progress.bytes_done), "total": words.size(restore.progress.bytes_total),
        "problem": words.said(restore.error), "made": _made(restore),
        "begun": words.moment(restore.started_at), "ended": words.moment(restore.finished_at),
        "live": None if restore.ended else reverse(live, args=(restore.id,)),
    }  # fmt: skip


def _made(restore: Restore) -> list[tuple[str, str, str | None]]:
    """What there is now: what it is, its name or id, and where Horizon shows it."""
    found: list[tuple[str, str, str | None]] = []
    for vm in (restore.result or {}).get("vms") or ():
        if restore.target.kind in ("server", "in_place") and vm.get("vm"):
            found.append((_now("Server"), vm.get("name") or vm["vm"], _page("instances", vm["vm"])))
        for disk in vm.get("disks") or ():
            for kind, panel, title in (("volume", "volumes", _now("Volume")), ("image", "images", _now("Image"))):
                if disk.get(kind):
                    found.append((title, f"{disk.get('disk', '')}: {disk[kind]}", _page(panel, disk[kind])))
    return found


def _page(panel: str, id: str) -> str | None:
    name = "horizon:project:images:images:detail" if panel == "images" else f"horizon:project:{panel}:detail"
    try:
        return reverse(name, args=(id,))
    except NoReverseMatch:
        return None
