"""One body for every error, a status for every one of ours, and nothing of us in what is our own fault."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import pytest

from raksha import errors
from raksha.api.errors import STATUS, problems, status_of
from raksha.api.nouns import Noun
from raksha.api.policy import Allow
from raksha.errors import RakshaError
from tests.unit.api.conftest import Api, error

SECRET = "mysql://raksha:hunter2@db.internal"


def every_error(family: type[RakshaError] = RakshaError) -> Iterator[type[RakshaError]]:
    for kind in family.__subclasses__():
        yield kind
        yield from every_error(kind)


@pytest.mark.parametrize("kind", sorted(every_error(), key=lambda kind: kind.__name__), ids=lambda kind: kind.__name__)
def test_every_error_has_a_status(kind: type[RakshaError]) -> None:
    status = status_of(kind)
    assert 400 <= status < 600
    if issubclass(kind, errors.NotFound):
        assert status == 404
    if kind.exit_code == 2 and kind is not errors.SettingsWrong:
        assert status == 400, "a bad argument of a command is a bad request"


def test_the_table_names_no_error_twice_by_family() -> None:
    for kind, status in STATUS.items():
        if kind is not RakshaError and kind.exit_code != 2:
            inherited = next(STATUS[base] for base in kind.__mro__[1:] if base in STATUS)
            assert status != inherited, f"{kind.__name__} says what its family says"


def failing(raised: Exception) -> Noun:
    noun = Noun("things", "/v1/<project:tenant_id>/things", "Fails.")

    @noun.operation("GET", "", rule="list", allow=Allow.READER, does="Fail.")
    def fail(tenant_id: str) -> None:
        raise raised

    return noun


@pytest.mark.parametrize(
    ("raised", "status", "code", "says"),
    [
        (errors.RowNotFound(noun="backup job", id="7"), 404, "not_found", "There is no backup job 7."),
        (errors.StateConflict(noun="run", id="7", found="running", wanted="failed", to="queued"), 409,
         "state_conflict", "The run 7 is running; only from failed can it become queued."),
        (errors.ChangedMeanwhile(noun="backup job", id="7", found=3, given=2), 412, "changed_meanwhile",
         "The backup job 7 was changed meanwhile: it is at version 3, not 2."),
        (errors.BadArgument(argument="x", detail="no"), 400, "bad_argument", "x: no."),
    ],
)  # fmt: skip
def test_what_is_refused_says_why(
    make_api: Callable[..., Api], raised: RakshaError, status: int, code: str, says: str
) -> None:
    assert error(make_api(failing(raised))("GET", "/v1/p1/things"), status, code) == says


@pytest.mark.parametrize(
    ("raised", "status", "code"),
    [
        (errors.DatabaseUnavailable(detail=SECRET), 503, "database_unavailable"),
        (errors.CommitUnknown(detail=SECRET), 500, "commit_unknown"),
        (ValueError(SECRET), 500, "internal_error"),
    ],
)
def test_our_own_fault_is_in_the_log_and_not_in_the_answer(
    make_api: Callable[..., Api], caplog: pytest.LogCaptureFixture, raised: Exception, status: int, code: str
) -> None:
    with caplog.at_level(logging.ERROR):
        answer = make_api(failing(raised))("GET", "/v1/p1/things")
    error(answer, status, code)
    text = answer.get_data(as_text=True)
    assert "hunter2" not in text and "Traceback" not in text and "ValueError" not in text
    assert "hunter2" in caplog.text
    retryable = isinstance(raised, RakshaError) and raised.retryable
    assert ("Retry-After" in answer.headers) == retryable


def test_what_flask_refuses_has_the_same_body(api: Api) -> None:
    error(api("GET", "/nowhere"), 404, "not_found")
    error(api("GET", "/v1//p1//limits"), 404, "not_found")
    error(api("GET", "/v1/p1/limits/extra"), 404, "not_found")
    answer = api("DELETE", "/v1/p1/limits")
    error(answer, 405, "method_not_allowed")
    assert set(answer.headers["Allow"].split(", ")) == {"GET", "HEAD", "PUT"}
    for method in ("OPTIONS", "TRACE", "PATCH", "BREW"):
        error(api(method, "/v1/p1/limits"), 405, "method_not_allowed")
    error(api("POST", "/v1/p1/schedule-preview", data="x=1"), 415, "not_json")
    error(api("POST", "/v1/p1/schedule-preview", data=b"{}", content_type="text/plain"), 415, "not_json")


def test_no_address_redirects(api: Api) -> None:
    assert api("GET", "/v1").json == api("GET", "/v1/").json
    assert api("GET", "/v1/p1/limits/").status_code == 200


def test_a_body_over_the_limit_is_refused(make_api: Callable[..., Api]) -> None:
    from raksha.config_api import Limits

    api = make_api(limits=Limits(max_body_bytes=2048))
    error(api("POST", "/v1/p1/schedule-preview", data=b" " * 2049, content_type="application/json"), 413,
          "request_too_large")  # fmt: skip
    error(api("POST", "/v1/p1/schedule-preview", data=b" " * 2048, content_type="application/json"), 400,
          "request_invalid")  # fmt: skip


def test_every_fault_of_a_request_is_told_but_not_a_million(api: Api) -> None:
    body = {"schedule": {"cron": 5, "colour": "red"}, "count": "10"}
    answer = api("POST", "/v1/p1/schedule-preview", json=body)
    assert answer.status_code == 400
    assert sorted(entry["detail"] for entry in answer.json["errors"]) == [
        "count: Not a valid integer.",
        "schedule.colour: Unknown field.",
        "schedule.cron: Not a valid string.",
    ]
    answer = api("POST", "/v1/p1/schedule-preview", json={f"key{n}": n for n in range(5000)})
    assert len(answer.json["errors"]) == 20


def test_names_that_a_client_made_up_are_told_in_short_and_harmless() -> None:
    ((where, _),) = problems({"json": {"\x1b[31m" + "x" * 500: ["Unknown field."]}})
    assert where == "?[31m" + "x" * 59 + "…"
