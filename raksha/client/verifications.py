"""`client.verifications`: whether restore points still hold what was stored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from raksha.client import naming, waiting
from raksha.client.records import Page, Verification
from raksha.client.transport import Transport, quoted

_PATH = "/verifications"
_NOUN = "verifications"


class Verifications:
    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def list(self, *, limit: int | None = None, marker: str | None = None, sort: str | None = None,
             **filters: Any) -> Iterator[Verification]:  # fmt: skip
        """All of them, or the first `limit`. Filters: `state`, `backupjob_id`, `backupjobrun_id`, `created_at`."""
        return self._transport.all(Verification, _NOUN, _PATH, {"marker": marker, "sort": sort, **filters}, limit)

    def page(self, *, limit: int | None = None, marker: str | None = None, sort: str | None = None,
             **filters: Any) -> Page[Verification]:  # fmt: skip
        query = {"limit": limit, "marker": marker, "sort": sort, **filters}
        return self._transport.page(Verification, _NOUN, _PATH, query)

    def get(self, id: str) -> Verification:
        """Raises `NotFound`."""
        return self._transport.ask(Verification, "GET", f"{_PATH}/{quoted(id)}").value

    def find(self, text: str) -> Verification:
        """An id, or the beginning of one. Raises `NoSuch`, `Ambiguous`."""
        if naming.is_id(text):
            return naming.by_id("verification", text, self.get)
        found = [each for each in self.list() if each.id.startswith(text)] if naming.is_beginning(text) else []
        return naming.one("verification", text, found)

    def create(self, job_id: str, run_id: str | None = None, *, data: bool = True, percent: int = 100) -> Verification:
        """Of one restore point, or (`run_id` None) of all of a job. `data`: what is stored is read, or `percent` of it;
        else only looked for. Raises `Conflict` while another looks at the same."""
        run = "" if run_id is None else f"/backupjobruns/{quoted(run_id)}"
        path, body = f"/backupjobs/{quoted(job_id)}{run}/verify", {"data": data, "percent": percent}
        return self._transport.ask(Verification, "POST", path, body=body).value

    def boot(self, job_id: str, run_id: str | None = None, *, vms: Sequence[str] = (), marker: str | None = None,
             timeout: int | None = None) -> Verification:  # fmt: skip
        """A test restore: VMs of a restore point (None: the newest of the job) are booted where they reach nobody.
        `vms`: ids; none: all. Raises `Conflict` while another boots the same."""
        run = "" if run_id is None else f"/backupjobruns/{quoted(run_id)}"
        given = {"vms": list(vms) or None, "marker": marker, "timeout": timeout}
        body = {"boot": True, **{name: value for name, value in given.items() if value is not None}}
        return self._transport.ask(Verification, "POST", f"/backupjobs/{quoted(job_id)}{run}/verify", body=body).value

    def cancel(self, id: str) -> Verification:
        return self._transport.ask(Verification, "POST", f"{_PATH}/{quoted(id)}/cancel").value

    def watch(self, id: str, *, interval: float = waiting.INTERVAL) -> Iterator[Verification]:
        """The verification each time that it has changed, the last time when it has ended."""
        return waiting.changes(lambda: self.get(id), interval)
