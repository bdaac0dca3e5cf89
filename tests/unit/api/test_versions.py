"""Discovery and microversions."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from raksha.api import versions
from tests.unit.api.conftest import Api, error

HEADER = "OpenStack-API-Version"


def test_discovery_needs_no_identity(make_api: Callable[..., Api]) -> None:
    api = make_api(public_endpoint="https://backup.example/")
    shown = {
        "id": "v1.0",
        "status": "CURRENT",
        "min_version": "1.0",
        "version": "1.0",
        "max_version": "1.0",
        "links": [{"rel": "self", "href": "https://backup.example/v1/"}],
    }
    assert api("GET", "/", None).json == {"versions": [shown]}
    assert api("GET", "/v1/", None).json == {"version": shown}


def test_links_follow_the_host_where_no_endpoint_is_set(api: Api) -> None:
    answer = api("GET", "/v1/", None, base_url="http://raksha.example:9797")
    assert answer.json["version"]["links"][0]["href"] == "http://raksha.example:9797/v1/"


@pytest.mark.parametrize(
    "given",
    [None, "data-protection 1.0", "data-protection latest", "compute 2.99", "compute 2.99, data-protection 1.0",
     "DATA-PROTECTION 1.0", " data-protection   1.0 ", ""],
)  # fmt: skip
def test_versions_that_are_served(api: Api, given: str | None) -> None:
    answer = api("GET", "/v1/p1/limits", headers={HEADER: given} if given is not None else {})
    assert answer.status_code == 200
    assert answer.headers[HEADER] == "data-protection 1.0"
    assert HEADER.lower() in answer.headers["Vary"].lower()


@pytest.mark.parametrize("given", ["1.1", "0.9", "2.0", "999999999.0"])
def test_a_version_out_of_range_is_told_the_range(api: Api, given: str) -> None:
    answer = api("GET", "/v1/p1/limits", headers={HEADER: f"data-protection {given}"})
    detail = error(answer, 406, "version_not_served")
    assert detail == f"Version {given} of the API is not served, only 1.0 to 1.0."
    entry = answer.json["errors"][0]
    assert (entry["min_version"], entry["max_version"]) == ("1.0", "1.0")
    assert answer.headers[HEADER] == "data-protection 1.0"


@pytest.mark.parametrize(
    "given", ["", "1", "1.", "1.0.0", "one.zero", "01.0", "1.0 1.0", "-1.0", "1.1000000000", "١.٠"]
)
def test_a_version_that_is_none_is_a_bad_request(api: Api, given: str) -> None:
    error(
        api("GET", "/v1/p1/limits", headers={HEADER: f"data-protection {given}".encode().decode("latin-1")}),
        400,
        "request_invalid",
    )


def test_errors_carry_the_version_too(api: Api) -> None:
    for answer in (api("GET", "/nowhere"), api("GET", "/v1/p1/limits", None), api("PUT", "/v1/p1/limits")):
        assert answer.headers[HEADER] == "data-protection 1.0"
        assert HEADER.lower() in answer.headers["Vary"].lower()


def test_versions_compare_as_numbers() -> None:
    assert versions.Version(1, 10) > versions.Version(1, 9)
