"""`client.previews`: what a schedule or a retention would do, before a job has it. Nothing is stored or deleted.

What a restore would do: `client.restores.plan`.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from raksha.client.records import RetentionPreview, SchedulePreview
from raksha.client.transport import Transport, quoted


class Previews:
    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def schedule(
        self, schedule: Mapping[str, Any], *, count: int = 10, after: datetime | None = None
    ) -> SchedulePreview:
        """`schedule`: as in a job. `after` has its zone; default: now."""
        body: dict[str, Any] = {"schedule": dict(schedule), "count": count}
        if after is not None:
            body["after"] = after
        return self._transport.ask(SchedulePreview, "POST", "/schedule-preview", body=body).value

    def retention(self, job_id: str, retention: Mapping[str, Any] | None = None) -> RetentionPreview:
        """`retention`: as in a job; None: that of this job."""
        body = None if retention is None else {"retention": dict(retention)}
        path = f"/backupjobs/{quoted(job_id)}/retention-preview"
        return self._transport.ask(RetentionPreview, "POST", path, body=body).value
