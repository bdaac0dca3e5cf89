"""`client.jobs`: what is protected, and when. The fields of a job stand in docs/api.md (Backup jobs)."""

from __future__ import annotations

from collections.abc import Iterator
from types import NoneType
from typing import Any

from msgspec.structs import replace

from raksha.client import naming
from raksha.client.records import Job, Page
from raksha.client.transport import Answer, Transport, quoted

_PATH = "/backupjobs"
_NOUN = "backupjobs"


class Jobs:
    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def list(self, *, limit: int | None = None, marker: str | None = None, sort: str | None = None,
             **filters: Any) -> Iterator[Job]:  # fmt: skip
        """All of them, or the first `limit`. `sort`: `name:asc,created_at:desc`. Filters: `name`, `state` (one or
        several), `vm_id`, `created_at` (`gt:2027-01-31T18:00:00Z`)."""
        return self._transport.all(Job, _NOUN, _PATH, {"marker": marker, "sort": sort, **filters}, limit)

    def page(self, *, limit: int | None = None, marker: str | None = None, sort: str | None = None,
             **filters: Any) -> Page[Job]:  # fmt: skip
        """One page; `marker` of it leads to the next."""
        return self._transport.page(Job, _NOUN, _PATH, {"limit": limit, "marker": marker, "sort": sort, **filters})

    def get(self, id: str) -> Job:
        """Raises `NotFound`."""
        return _job(self._transport.ask(Job, "GET", _path(id)))

    def find(self, name_or_id: str) -> Job:
        """With its etag. Raises `NoSuch`, `Ambiguous`."""
        if naming.is_id(name_or_id):
            return naming.by_id("job", name_or_id, self.get)
        return self.get(naming.one("job", name_or_id, self.list(name=name_or_id)).id)

    def create(self, name: str, **fields: Any) -> Job:
        """`vms`, `volumes`, `vm_selector`, `schedule`, `retention`, … as docs/api.md has them."""
        return _job(self._transport.ask(Job, "POST", _PATH, body={"name": name, **fields}))

    def update(self, id: str, *, etag: str | None = None, **changes: Any) -> Job:
        """Change the fields that are named; None takes a value away. `etag`: of the job as the caller knows it
        (default: as it is now). Raises `ChangedMeanwhile` if somebody was faster: nothing was done then."""
        known = etag or self.get(id).etag
        return _job(self._transport.ask(Job, "PUT", _path(id), body=changes, if_match=known))

    def pause(self, id: str) -> Job:
        """Its schedule fires no more; it can be run by hand."""
        return self.update(id, enabled=False)

    def resume(self, id: str) -> Job:
        """Ends a pause, and a suspension."""
        return self.update(id, enabled=True)

    def take_over(self, id: str) -> Job:
        """It acts for the caller from now on."""
        return _job(self._transport.ask(Job, "POST", f"{_path(id)}/take-over"))

    def delete(self, id: str, *, with_runs: bool = False) -> None:
        """Begun with the answer, done when `get` raises `NotFound`. `with_runs`: its restore points as well."""
        query = {"with_runs": True} if with_runs else {}
        self._transport.ask(NoneType, "DELETE", _path(id), query=query)


def _path(id: str) -> str:
    return f"{_PATH}/{quoted(id)}"


def _job(answer: Answer[Job]) -> Job:
    return replace(answer.value, etag=answer.etag)
