"""FINISH: what became of a run, carried out on the host. RELEASE: a VM given back.

A run that is a restore point: noted as durable, then layers are merged (or the bitmap counts from it). One that is
none: layers stay for the next run. Where the capture is gone because its process was, recovery puts the VM right, and
the next run goes on from there: nothing else is lost.
"""

from __future__ import annotations

import logging
from contextlib import closing

from raksha.agent.captures import OpenCapture
from raksha.agent.host import Host
from raksha.agent.work import Work
from raksha.journal import HostRunState
from raksha.tasks import Finished, FinishOrder, ReleaseOrder

_log = logging.getLogger(__name__)


class FinishTask:
    """One use. May be repeated by another one."""

    def __init__(self, host: Host, work: Work, order: FinishOrder) -> None:
        self._host = host
        self._work = work
        self._order = order

    def __call__(self) -> Finished:
        self._work.wait_for_lease()
        order, journal = self._order, self._host.journal
        if order.number is None:
            journal.run_ended(order.backupjobrun, HostRunState.FAILED)
        else:
            journal.run_durable(order.backupjobrun, order.number)
        open_capture = self._host.captures.take(order.backupjobrun, order.vm)
        if open_capture is None:
            _log.info("the capture of VM %s is gone; it is looked after", order.vm)
            return Finished(warnings=tuple(self._host.recovery.again(order.vm)))
        return Finished(warnings=tuple(self._end(open_capture)))

    def _end(self, open_capture: OpenCapture) -> list[str]:
        if self._order.number is None:
            self._work.progress.step("leaving the layers for the next run")
            open_capture.abandon()
            return []
        self._work.progress.step("merging layers")
        return open_capture.finish()


class ReleaseTask:
    """One use. May be repeated."""

    def __init__(self, host: Host, work: Work, order: ReleaseOrder) -> None:
        self._host = host
        self._work = work
        self._order = order

    def __call__(self) -> Finished:
        """Raises `VmNotFound`, `NeedsAttention` errors and what merging raises; what is done then, stays done."""
        self._work.wait_for_lease()
        self._work.progress.step("releasing")
        with closing(self._host.engines()) as engines:
            return Finished(warnings=tuple(engines.release(self._order.vm)))
