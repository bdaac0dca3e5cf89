"""Jobs that cannot go on as they are: they fire no more, and say why, until somebody has seen to it."""

from __future__ import annotations

import logging

from sqlalchemy.orm import Session

from raksha.db.models import BackupJob
from raksha.db.transition import transition
from raksha.errors import RakshaError, StateConflict
from raksha.states import JobState

_log = logging.getLogger(__name__)


def suspend(session: Session, job_id: str, error: RakshaError) -> None:
    """Its restore points stay. One that is not active stays as it is."""
    reason = {"code": error.code, "message": str(error)}
    try:
        transition(session, BackupJob, job_id, JobState.SUSPENDED, start={JobState.ACTIVE}, state_reason=reason)
    except StateConflict:  # its owner was faster
        return
    _log.error("job %s is suspended: %s", job_id, error, extra={"action": "suspend", "backupjob": job_id})
