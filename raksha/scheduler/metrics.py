"""What Prometheus is told about this scheduler. Counted always, served only where a port is set."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from raksha.scheduler.advance import Advanced
from raksha.scheduler.collecting import Collected
from raksha.scheduler.dispatch import Dispatched
from raksha.scheduler.reap import Reaped
from raksha.scheduler.tick import Ticked

_SECONDS = (0.005, 0.02, 0.1, 0.5, 1, 2, 5, 10, 30, 60, 300)


class Metrics:
    """For any thread. Each scheduler has its own registry: several may live in one process."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.seconds = Histogram(
            "raksha_scheduler_step_seconds", "How long steps took.", ["step"], buckets=_SECONDS, registry=registry
        )
        self.failed = Counter("raksha_scheduler_steps_failed", "Steps that failed.", ["step"], registry=registry)
        self.fired = Counter("raksha_scheduler_fired", "Fire times that became runs.", registry=registry)
        self.passed = Counter("raksha_scheduler_passed", "Fire times that were let pass.", registry=registry)
        self.started = Counter("raksha_scheduler_started", "Runs that got all their slots.", registry=registry)
        self.waiting = Gauge("raksha_scheduler_waiting", "Queued runs that could not start.", registry=registry)
        self.moved = Counter("raksha_scheduler_runs", "Runs that came to a state.", ["state"], registry=registry)
        self.lost = Counter("raksha_scheduler_lost", "Tasks given up or queued again: agent gone.", registry=registry)
        self.round_at = Gauge(
            "raksha_scheduler_last_round_timestamp_seconds", "When the last round ended.", registry=registry
        )
        self.collected = Counter(
            "raksha_scheduler_objects_collected", "Objects that no restore point needed.", registry=registry
        )

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Counts, and passes on what it raises."""
        begun = time.monotonic()
        try:
            yield
        except BaseException:
            self.failed.labels(name).inc()
            raise
        finally:
            self.seconds.labels(name).observe(time.monotonic() - begun)

    def note(self, done: object) -> None:
        """What a step did."""
        if isinstance(done, Ticked):
            self.fired.inc(done.fired)
            self.passed.inc(done.passed)
        elif isinstance(done, Dispatched):
            self.started.inc(done.started)
            self.waiting.set(done.waiting)
        elif isinstance(done, Advanced):
            for state, count in done.moved.items():
                self.moved.labels(state).inc(count)
        elif isinstance(done, Reaped):
            self.lost.inc(done.requeued + done.failed)
        elif isinstance(done, Collected):
            self.collected.inc(done.segments + done.objects)

    def serve(self, address: str, port: int) -> Callable[[], None]:
        """At http://address:port/metrics. Returns what ends it. Raises `OSError`."""
        server, thread = start_http_server(port, address, registry=self.registry)

        def end() -> None:
            server.shutdown()
            server.server_close()
            thread.join()

        return end
