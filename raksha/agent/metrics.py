"""What Prometheus is told about this agent. Counted always, served only where a port is set."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 20)


class Metrics:
    """For any thread. Each agent has its own registry: several may live in one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.tasks = Counter("raksha_agent_tasks", "Claims that have ended.", ["kind", "end"], registry=self.registry)
        self.running = Gauge("raksha_agent_tasks_running", "Tasks under way.", ["kind"], registry=self.registry)
        self.captures = Gauge(
            "raksha_agent_captures_open", "Captures whose run is not settled yet.", registry=self.registry
        )
        self.results = Gauge(
            "raksha_agent_results_waiting", "Ends of claims that no scheduler has taken yet.", registry=self.registry
        )
        self.read = Counter("raksha_agent_bytes_read", "Bytes read from disks of VMs.", registry=self.registry)
        self.sent = Counter("raksha_agent_bytes_sent", "Bytes sent to vaults.", registry=self.registry)
        self.frozen = Histogram(
            "raksha_agent_frozen_seconds", "How long guests stood still.", buckets=_SECONDS, registry=self.registry
        )
        self.unanswered = Counter(
            "raksha_agent_calls_unanswered", "Questions over the bus without an answer.", registry=self.registry
        )
        self.heard_at = Gauge(
            "raksha_agent_last_heartbeat_timestamp_seconds", "When a scheduler last answered a heartbeat.",
            registry=self.registry,
        )  # fmt: skip

    def serve(self, address: str, port: int) -> Callable[[], None]:
        """At http://address:port/metrics. Returns what ends it. Raises `OSError`."""
        server, thread = start_http_server(port, address, registry=self.registry)

        def end() -> None:
            server.shutdown()
            server.server_close()
            thread.join()

        return end
