"""What is there for everybody: health, the OpenAPI document, the page to browse it. And the two nouns of the frame."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from openapi_spec_validator import validate

from raksha.api.app import rules
from raksha.errors import DatabaseUnavailable
from tests.unit.api.conftest import Api, basic, error

REPOSITORY = Path(__file__).parents[3]
PREVIEW = "/v1/p1/schedule-preview"


def broken() -> None:
    raise DatabaseUnavailable(detail="db.internal refused")


def test_health_is_told_to_all_and_its_reasons_to_operators(make_api: Callable[..., Api]) -> None:
    api = make_api(checks={"database": broken, "bus": lambda: None})
    for user in (None, "reader", "member"):
        answer = api("GET", "/healthcheck", user)
        assert (answer.status_code, answer.json) == (503, {"healthy": False})
    assert api("GET", "/healthcheck", None, headers=basic("admin", "wrong")).json == {"healthy": False}
    answer = api("GET", "/healthcheck", "admin")
    assert answer.status_code == 503
    assert answer.json["checks"] == [
        {"name": "bus", "healthy": True, "detail": ""},
        {"name": "database", "healthy": False, "detail": "The database did not answer: db.internal refused."},
    ]


def test_what_is_well_is_200(make_api: Callable[..., Api]) -> None:
    api = make_api(checks={"bus": lambda: None})
    answer = api("GET", "/healthcheck", None)
    assert (answer.status_code, answer.json) == (200, {"healthy": True})
    assert answer.headers["Cache-Control"] == "no-store"


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in document["paths"].items():
        for method in set(item) - {"parameters"}:
            yield method.upper(), path, item[method]


def test_the_openapi_document_is_valid_current_and_complete(api: Api) -> None:
    served = api("GET", "/openapi.json", None)
    assert served.mimetype == "application/json"
    document = json.loads(served.data)
    validate(document)
    assert served.data == (REPOSITORY / "docs/openapi.json").read_bytes(), "run scripts/api_documents.py"
    told = {(method, path) for method, path, _ in operations(document)}
    assert told == {(rule.method, rule.path) for rule in rules()}
    error_entry = document["components"]["schemas"]["ErrorEntry"]
    assert set(error_entry["required"]) == {"request_id", "code", "status", "title", "detail"}
    ids = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(set(ids)) == len(ids)


def test_each_operation_documents_the_errors_that_it_gives(api: Api) -> None:
    document = api("GET", "/openapi.json", None).json
    for _, path, operation in operations(document):
        assert {"401", "403", "404", "default"} <= set(operation["responses"]), path
        if "requestBody" in operation:
            assert {"400", "413", "415"} <= set(operation["responses"]), path


def test_the_page_is_served_from_here_alone(api: Api) -> None:
    page = api("GET", "/docs", None)
    assert page.mimetype == "text/html"
    text = page.get_data(as_text=True)
    assert "http" not in text
    policy = page.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "script-src 'self';" in policy and "http" not in policy
    for address in re.findall(r'(?:src|href)="([^"]+)"', text):
        answer = api("GET", f"/{address}", None)
        assert answer.status_code == 200 and len(answer.data) > 50, address
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
    start = api("GET", "/docs/start.js", None).get_data(as_text=True)
    assert "http" not in start and 'url: "openapi.json"' in start and "validatorUrl: null" in start
    assert b"SwaggerUIBundle" in api("GET", "/docs/swagger-ui-bundle.js", None).data


@pytest.mark.parametrize(
    "name", ["..", "../__init__.py", "index.html", "%2e%2e%2fLICENSE", "LICENSE", "swagger-ui.css%00"]
)
def test_nothing_else_is_served_as_a_file(api: Api, name: str) -> None:
    error(api("GET", f"/docs/{name}", None), 404, "not_found")


def test_a_preview_tells_fire_times_and_words(api: Api) -> None:
    body = {
        "schedule": {"cron": "30 2 * * *", "zone": "Europe/Paris", "jitter": 600, "full_cron": "30 2 * * 0"},
        "after": "2027-03-26T12:00:00+01:00",
        "count": 3,
    }
    answer = api("POST", PREVIEW, json=body)
    assert answer.status_code == 200, answer.data
    # the second is in the night in which 02:30 is skipped
    assert answer.json["fire_times"] == [
        {"scheduled_at": "2027-03-27T01:30:00+00:00", "full": False},
        {"scheduled_at": "2027-03-28T01:30:00+00:00", "full": True},
        {"scheduled_at": "2027-03-29T00:30:00+00:00", "full": False},
    ]
    assert answer.json["in_words"].startswith("At 02:30 every day (Europe/Paris)")


@pytest.mark.parametrize(
    ("schedule", "code"),
    [
        ({}, "schedule_invalid"),
        ({"cron": "0 3 * * *", "every": 3600}, "schedule_invalid"),
        ({"cron": "0 3 * * 8"}, "bad_cron"),
        ({"cron": "0 0 31 2 *"}, "schedule_never_fires"),
        ({"cron": "* * * * *"}, "schedule_too_often"),
        ({"every": 299}, "schedule_too_often"),
        ({"every": 3600, "end": "2001-01-01T00:00:00Z"}, "schedule_never_fires"),
        ({"cron": "0 3 * * *", "zone": "Mars/Phobos"}, "zone_unknown"),
        ({"cron": "0 3 * * *", "window": "25:00-1:00"}, "schedule_invalid"),
    ],
)
def test_a_schedule_that_cannot_be_meant_is_refused(api: Api, schedule: dict[str, object], code: str) -> None:
    error(api("POST", PREVIEW, json={"schedule": schedule}), 400, code)


def test_a_preview_has_an_end(api: Api) -> None:
    body = {"schedule": {"cron": "0 3 * * *"}, "count": 101}
    assert error(api("POST", PREVIEW, json=body), 400, "request_invalid") == "count: At most 100."
    ending = {"every": 86400, "anchor": "2126-01-01T00:00:00Z", "end": "2126-01-03T00:00:00Z"}
    answer = api("POST", PREVIEW, json={"schedule": ending})
    times = [fire["scheduled_at"] for fire in answer.json["fire_times"]]
    assert times == [f"2126-01-0{day}T00:00:00+00:00" for day in (1, 2, 3)]
