"""`client.runs`: executions of a job, and the restore points that they leave."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from types import NoneType
from typing import Any

from msgspec.structs import replace

from raksha.client import errors, naming, waiting
from raksha.client.records import Page, Run
from raksha.client.transport import Answer, Transport, quoted

_NOUN = "backupjobruns"
#: of `find`: the newest restore point
LATEST = "latest"


class Runs:
    """A run is named by its job and its own id; `find` knows the job where the caller does not."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def list(self, job_id: str, *, limit: int | None = None, marker: str | None = None, sort: str | None = None,
             **filters: Any) -> Iterator[Run]:  # fmt: skip
        """All of them, or the first `limit`. Filters: `state`, `kind`, `trigger` (one or several), `protected`,
        `created_at`."""
        return self._transport.all(Run, _NOUN, _runs(job_id), {"marker": marker, "sort": sort, **filters}, limit)

    def page(self, job_id: str, *, limit: int | None = None, marker: str | None = None, sort: str | None = None,
             **filters: Any) -> Page[Run]:  # fmt: skip
        query = {"limit": limit, "marker": marker, "sort": sort, **filters}
        return self._transport.page(Run, _NOUN, _runs(job_id), query)

    def get(self, job_id: str, id: str) -> Run:
        """With its VMs and disks. Raises `NotFound`."""
        return _run(self._transport.ask(Run, "GET", _path(job_id, id)))

    def find(self, text: str, job_ids: Iterable[str]) -> Run:
        """An id, the beginning of one (four digits at least), or `latest`: the newest restore point; among these jobs.

        Raises `NoSuch`, `Ambiguous`.
        """
        if naming.is_id(text):
            for job_id in job_ids:
                try:
                    return self.get(job_id, text)
                except errors.NotFound:
                    continue
            return naming.one("run", text, [])
        found: list[Run] = []
        for job_id in job_ids:
            if text == LATEST:
                found += self.list(job_id, state=("available", "degraded"), sort="created_at:desc", limit=1)
            elif naming.is_beginning(text):
                found += [run for run in self.list(job_id) if run.id.startswith(text)]
        run = naming.one("run", text, found)
        return self.get(run.backupjob_id, run.id)

    def start(
        self, job_id: str, *, kind: str | None = None, description: str | None = None, protected: bool | None = None
    ) -> Run:
        """Run a job now. `kind`: `full` or `incremental`; None: as its policy says."""
        path = _runs(job_id) if kind is None else f"/backupjobs/{quoted(job_id)}/{quoted(kind)}"
        given = {"description": description, "protected": protected}
        body = {name: value for name, value in given.items() if value is not None}
        return _run(self._transport.ask(Run, "POST", path, body=body or None))

    def update(self, job_id: str, id: str, *, etag: str | None = None, **changes: Any) -> Run:
        """`description`, `protected`. Raises `ChangedMeanwhile`."""
        known = etag or self.get(job_id, id).etag
        return _run(self._transport.ask(Run, "PUT", _path(job_id, id), body=changes, if_match=known))

    def cancel(self, job_id: str, id: str) -> Run:
        return _run(self._transport.ask(Run, "POST", f"{_path(job_id, id)}/cancel"))

    def delete(self, job_id: str, id: str) -> None:
        """Begun with the answer, done when `get` raises `NotFound`. Runs that build on it stay whole."""
        self._transport.ask(NoneType, "DELETE", _path(job_id, id))

    def watch(self, job_id: str, id: str, *, interval: float = waiting.INTERVAL) -> Iterator[Run]:
        """The run each time that it has changed, the last time when it has ended."""
        return waiting.changes(lambda: self.get(job_id, id), interval)


def _runs(job_id: str) -> str:
    return f"/backupjobs/{quoted(job_id)}/backupjobruns"


def _path(job_id: str, id: str) -> str:
    return f"{_runs(job_id)}/{quoted(id)}"


def _run(answer: Answer[Run]) -> Run:
    return replace(answer.value, etag=answer.etag)
