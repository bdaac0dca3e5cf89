"""`/metrics`: what Prometheus asks of an API process.

    raksha_api_requests_total{method, route, status}     answers given
    raksha_api_request_seconds{method, route}            how long they took
    raksha_api_requests_under_way                        requests at work

`route` is the address with its parameters, as in the OpenAPI document, so that nobody makes more of them by asking for
addresses that there are not. Who may look is a setting ([api] metrics), as scrapers do not always log in.
With several processes each of them answers for all: `share`.
"""

from __future__ import annotations

import os
import time

import flask
from flask.typing import ResponseReturnValue
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest, values
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from raksha.api.nouns import for_everybody, shown_path
from raksha.api.policy import Allow, Rule
from raksha.api.services import frame
from raksha.errors import NothingHere

PATH = "/metrics"
#: of the library: where processes count together
_SHARED = "PROMETHEUS_MULTIPROC_DIR"

_SHOW = Rule("metrics:show", Allow.ADMIN, "See the metrics of an API process.", "GET", PATH)
RULES = (_SHOW,)

#: seconds
_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


def share(directory: str) -> None:
    """From now on, and in processes that are forked, metrics are counted in files of this directory."""
    os.environ[_SHARED] = directory
    # the library looks at its environment when it is imported, which was before anybody could know
    values.ValueClass = values.get_value_class()  # type: ignore[no-untyped-call]


def left(pid: int) -> None:
    """A process that counted is gone."""
    if _SHARED in os.environ:
        mark_process_dead(pid)  # type: ignore[no-untyped-call]


class Metrics:
    """Of one application."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "raksha_api_requests", "Answers given.", ["method", "route", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "raksha_api_request_seconds", "Seconds from a request to its answer.", ["method", "route"],
            registry=self.registry, buckets=_BUCKETS,
        )  # fmt: skip
        self.under_way = Gauge(
            "raksha_api_requests_under_way", "Requests at work.", registry=self.registry,
            multiprocess_mode="livesum",
        )  # fmt: skip

    def add_to(self, app: flask.Flask) -> None:
        @for_everybody
        def metrics() -> ResponseReturnValue:
            _admit()
            return flask.Response(self.text(), content_type=CONTENT_TYPE_LATEST, headers={"Cache-Control": "no-store"})

        app.before_request(self._began)
        app.after_request(self._answered)
        app.teardown_request(self._ended)
        app.add_url_rule(PATH, view_func=metrics)

    def text(self) -> bytes:
        if _SHARED not in os.environ:
            return generate_latest(self.registry)
        everywhere = CollectorRegistry()
        MultiProcessCollector(everywhere)  # type: ignore[no-untyped-call]
        return generate_latest(everywhere)

    def _began(self) -> None:
        flask.g.began = time.monotonic()
        flask.g.counted = True
        self.under_way.inc()

    def _answered(self, response: flask.Response) -> flask.Response:
        request = flask.request
        route = "none" if request.url_rule is None else shown_path(request.url_rule.rule)
        # what is no method of any route is anybody's invention
        method = request.method if request.url_rule is not None else "any"
        self.requests.labels(method, route, str(response.status_code)).inc()
        self.seconds.labels(method, route).observe(time.monotonic() - flask.g.began)
        return response

    def _ended(self, _error: BaseException | None) -> None:
        if flask.g.pop("counted", False):
            self.under_way.dec()


def _admit() -> None:
    """Raises `NothingHere`, `NotAuthenticated`, `NotAllowed`."""
    who = frame().settings.metrics
    if who == "nobody":
        raise NothingHere
    if who == "operators":
        identity = frame().services.authenticator.identify(flask.request)
        frame().policy.require(_SHOW.name, identity, None)
