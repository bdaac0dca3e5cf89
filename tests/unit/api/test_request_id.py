"""The id of a request: ours always, another service's beside it if it is one."""

from __future__ import annotations

import logging
import re

import pytest

from raksha.api.request_id import RequestIdFilter, current
from tests.unit.api.conftest import Api

OUTER = "req-5f3c1e2a-8d4b-4c6f-9a7e-0b1d2c3e4f50"
HEADER = "X-Openstack-Request-Id"


class Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.addFilter(RequestIdFilter())
        self.lines: list[tuple[str, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append((record.request_id, record.global_request_id))  # type: ignore[attr-defined]


@pytest.fixture
def kept() -> Kept:
    return Kept()


def ask(api: Api, kept: Kept, headers: dict[str, str]) -> str:
    logger = logging.getLogger("raksha.api.app")
    logger.addHandler(kept)
    logger.setLevel(logging.INFO)
    try:
        return api("GET", "/", None, headers=headers).headers[HEADER]
    finally:
        logger.removeHandler(kept)
        logger.setLevel(logging.NOTSET)


def test_each_request_has_an_id_of_ours_and_its_log_lines_have_it(api: Api, kept: Kept) -> None:
    first, second = ask(api, kept, {}), ask(api, kept, {})
    assert first != second
    assert re.fullmatch(r"req-[0-9a-f-]{36}", first)
    assert kept.lines == [(first, "-"), (second, "-")]
    assert current() is None


def test_the_id_of_another_service_is_kept_beside_ours(api: Api, kept: Kept) -> None:
    own = ask(api, kept, {HEADER: OUTER})
    assert own != OUTER
    assert kept.lines == [(own, OUTER)]


@pytest.mark.parametrize(
    "given", ["req-1", OUTER.upper(), OUTER + "x", "x" + OUTER, "5f3c1e2a-8d4b-4c6f-9a7e-0b1d2c3e4f50", "a" * 5000,
              f"{OUTER} {OUTER}", "req-\xe9f3c1e2a-8d4b-4c6f-9a7e-0b1d2c3e4f50"]
)  # fmt: skip
def test_what_is_no_id_is_ignored(api: Api, kept: Kept, given: str) -> None:
    own = ask(api, kept, {HEADER: given})
    assert kept.lines == [(own, "-")]


def test_a_line_of_the_log_says_who_did_what_and_holds_no_line_of_the_callers(
    api: Api, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "raksha.api.app"):
        api("GET", "/v1/p1/limits")
        api("GET", "/", None, environ_overrides={"PATH_INFO": "/x\nINFO forged"})
    first, second = caplog.messages
    assert first.startswith("GET '/v1/p1/limits' 200 user=member project=p1 seconds=0.")
    assert second.startswith("GET '/x\\nINFO forged' 404 user=- project=- seconds=0.")


def test_a_record_outside_of_requests_has_none(kept: Kept) -> None:
    kept.handle(logging.makeLogRecord({"msg": "hello"}))
    assert kept.lines == [("-", "-")]
