"""`client.restores`: what is given back from a restore point. `target` and `vms`: docs/api.md (Restores)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from raksha.client import naming, waiting
from raksha.client.records import Page, Restore, RestorePlan
from raksha.client.transport import Transport, quoted

_PATH = "/restores"
_NOUN = "restores"


class Restores:
    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def list(self, *, limit: int | None = None, marker: str | None = None, sort: str | None = None,
             **filters: Any) -> Iterator[Restore]:  # fmt: skip
        """All of them, or the first `limit`. Filters: `state`, `backupjobrun_id`, `created_at`."""
        return self._transport.all(Restore, _NOUN, _PATH, {"marker": marker, "sort": sort, **filters}, limit)

    def page(self, *, limit: int | None = None, marker: str | None = None, sort: str | None = None,
             **filters: Any) -> Page[Restore]:  # fmt: skip
        query = {"limit": limit, "marker": marker, "sort": sort, **filters}
        return self._transport.page(Restore, _NOUN, _PATH, query)

    def get(self, id: str) -> Restore:
        """Raises `NotFound`."""
        return self._transport.ask(Restore, "GET", f"{_PATH}/{quoted(id)}").value

    def find(self, text: str) -> Restore:
        """An id, or the beginning of one. Raises `NoSuch`, `Ambiguous`."""
        if naming.is_id(text):
            return naming.by_id("restore", text, self.get)
        begins = naming.is_beginning(text)
        return naming.one("restore", text, [each for each in self.list() if each.id.startswith(text)] if begins else [])

    def create(
        self, job_id: str, run_id: str, target: Mapping[str, Any], vms: Sequence[Mapping[str, Any]] | None = None,
        *, target_token: str | None = None,
    ) -> Restore:  # fmt: skip
        """Begun with the answer. `vms`: None: all, with all their disks. `target_token`: of the caller in the other
        project that `target` names; None: one is got by this login."""
        body, more = _body(target, vms), self._token(target, target_token)
        return self._transport.ask(Restore, "POST", _of(job_id, run_id), body=body, more=more).value

    def plan(
        self, job_id: str, run_id: str, target: Mapping[str, Any], vms: Sequence[Mapping[str, Any]] | None = None,
        *, target_token: str | None = None,
    ) -> RestorePlan:  # fmt: skip
        """What `create` would do with the same arguments (`dry_run`)."""
        body = {**_body(target, vms), "dry_run": True}
        more = self._token(target, target_token)
        return self._transport.ask(RestorePlan, "POST", _of(job_id, run_id), body=body, more=more).value

    def _token(self, target: Mapping[str, Any], given: str | None) -> dict[str, str]:
        project = target.get("project")
        token = self._transport.token_in(project) if given is None and project is not None else given
        return {} if token is None else {"X-Raksha-Target-Token": token}

    def cancel(self, id: str) -> Restore:
        return self._transport.ask(Restore, "POST", f"{_PATH}/{quoted(id)}/cancel").value

    def watch(self, id: str, *, interval: float = waiting.INTERVAL) -> Iterator[Restore]:
        """The restore each time that it has changed, the last time when it has ended."""
        return waiting.changes(lambda: self.get(id), interval)


def _of(job_id: str, run_id: str) -> str:
    return f"/backupjobs/{quoted(job_id)}/backupjobruns/{quoted(run_id)}"


def _body(target: Mapping[str, Any], vms: Sequence[Mapping[str, Any]] | None) -> dict[str, Any]:
    return {"target": dict(target)} if vms is None else {"target": dict(target), "vms": [dict(vm) for vm in vms]}
