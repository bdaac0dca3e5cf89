"""An agent: what `raksha-agent` and `raksha serve` run on a hypervisor.

::

    recovery     thread, once        what an earlier process left behind
    sweep        thread, once        volumes that it left mounted
    boots        thread, once        VMs that it had started for a test, with their disks
    sight        thread              looks at all VMs
    keeper       thread              talks to the schedulers; `keeper.py` has its rounds
    task-…       a thread each       does the work
    bus          answers one verb: WAKE

Stopping: nothing new is claimed but the ends of runs whose captures are open; what is under way may end within
`drain_timeout`; then backups, restores and verifications are broken off and handed back. Captures whose run nobody has
settled by then are let go as they are: the next start goes on from there, as after a kill.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from functools import partial

from raksha.agent import boot_scratch, storage_host
from raksha.agent.captures import OpenCaptures
from raksha.agent.crew import Crew
from raksha.agent.host import Host
from raksha.agent.keeper import Keeper
from raksha.agent.metrics import Metrics
from raksha.agent.outbox import Outbox
from raksha.agent.recovery import Recovery
from raksha.agent.said import Said
from raksha.agent.seen import Sight
from raksha.agent.work import End
from raksha.config import Settings
from raksha.config_agent import AgentSettings
from raksha.errors import RakshaError
from raksha.journal import Journal
from raksha.rpc import Bus
from raksha.virt.libvirt.connection import Connection
from raksha.wake import AGENTS, SCHEDULERS, WAKE, Wake

_log = logging.getLogger(__name__)

#: seconds for what was broken off to come to its end, and for the schedulers to hear of it
_LAST = 10.0
_POLL = 0.3
_ENGINES = ["overlay", "pull"]
_TARGETS = ["domain", "files", "in_place"]


class Agent:
    """One host's. `run` returns when `stop` was called and what was under way has ended."""

    def __init__(self, settings: Settings, agent: AgentSettings, bus: Bus) -> None:
        """Raises `JournalUnusable`, `HypervisorUnavailable`."""
        with closing(Connection(settings.libvirt_uri)) as connection:
            capabilities = {"engines": _ENGINES, "targets": _TARGETS, "libvirt": connection.version()}
        capabilities["storage"] = storage_host.able()
        capabilities["boot"] = agent.test_restores > 0
        self._agent = agent
        self._bus = bus
        self._journal = Journal(settings.state_dir)
        self._sight = Sight(settings, self._journal, agent.look_interval)
        self._recovery = Recovery(settings, self._journal)
        self._host = Host(
            settings=settings,
            agent=agent,
            journal=self._journal,
            schedulers=bus.to(SCHEDULERS),
            captures=OpenCaptures(),
            recovery=self._recovery,
            said=Said(),
            metrics=Metrics(),
        )
        self._outbox = Outbox(self._journal)
        self._crew = Crew(self._host, self._outbox, self._wake)
        self._keeper = Keeper(self._host, self._crew, self._outbox, self._sight, capabilities)
        self._stopping = threading.Event()
        self._hurried = threading.Event()

    def stop(self) -> None:
        """From any thread; not from a signal handler."""
        self._stopping.set()
        self._wake()

    def hurry(self) -> None:
        """After `stop`: what is under way is broken off now."""
        self._hurried.set()

    def run(self) -> None:
        """Raises `OSError` where metrics cannot be served."""
        with ExitStack() as stack:
            if self._agent.metrics_port:
                address, port = self._agent.metrics_address, self._agent.metrics_port
                stack.callback(self._host.metrics.serve(address, port))
            helpers: dict[str, Callable[[], None]] = {
                "recovery": self._recovery.run,
                "sweep": storage_host.sweep,
                "boots": partial(boot_scratch.sweep, self._host.settings.libvirt_uri, self._host.boot_dir()),
                "sight": self._sight.run,
                "listener": self._listen,
            }
            threads = [threading.Thread(target=run, name=name, daemon=True) for name, run in helpers.items()]
            for thread in threads:
                thread.start()
            while not self._stopping.is_set() and not self._keeper.replaced:
                self._keeper.round()
                self._keeper.wait()
            self._stopping.set()
            self._recovery.stop()
            self._sight.stop()
            self._drain()
        for thread in threads:
            thread.join(_LAST)
        # a merge that has not ended, or a libvirt that does not answer, may still want it
        if not self._crew.working() and not any(thread.is_alive() for thread in threads):
            self._journal.close()

    def _wake(self, _hint: Wake | None = None) -> None:
        self._keeper.wake()

    def _listen(self) -> None:
        """Without it nothing is missed, only later: so it may wait for a broker that is not there yet."""
        try:
            with self._bus.serve(AGENTS, self._agent.host, {WAKE: self._wake}):
                self._stopping.wait()
        except RakshaError as error:
            _log.error("nobody can wake this agent: %s", error, extra={"action": "listen"})

    def _drain(self) -> None:
        _log.info("stopping: what is under way may end", extra={"action": "stop"})
        self._keeper.draining = True
        self._rounds(self._agent.drain_timeout)
        self._crew.end_all(End.STOPPED)
        self._rounds(_LAST, captures=False)
        while (left := self._host.captures.take_any()) is not None:
            _log.warning("the capture of VM %s is let go: nobody has settled its run", left.vm)
            left.let_go()

    def _rounds(self, seconds: float, *, captures: bool = True) -> None:
        """Until nothing is left, or the time is over."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and (self._left() or (captures and self._host.captures.count())):
            if captures and self._hurried.is_set():
                return
            self._keeper.wake()
            self._keeper.round()
            time.sleep(_POLL)

    def _left(self) -> bool:
        return bool(self._crew.working() or self._outbox.waiting() or self._host.said.waiting())
