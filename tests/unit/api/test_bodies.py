"""What a request may hold. Whatever is sent: an answer in the form of all errors, never a 5xx, in bounded time."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from marshmallow import ValidationError, fields

from raksha.api.bodies import Body, Flag, Items, Moment, Text, Whole, Words, decode
from raksha.api.nouns import Noun
from raksha.api.policy import Allow
from raksha.errors import RequestInvalid
from tests.unit.api.conftest import Api, error

PREVIEW = "/v1/p1/schedule-preview"

#: one application for all examples: nothing is changed by them
unhurried = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


class Strict(Body):
    text = Text(least=1, most=5, pattern="[a-z]+")
    whole = Whole(least=1, most=10)
    flag = Flag()
    items = Items(Whole(), most=3)
    words = Words(most=2)
    moment = Moment()


@pytest.mark.parametrize(
    ("name", "value", "read"),
    [
        ("text", "abc", "abc"),
        ("whole", 1, 1),
        ("whole", 10, 10),
        ("flag", True, True),
        ("flag", False, False),
        ("items", [], []),
        ("items", [1, 2, 3], [1, 2, 3]),
        ("words", {"k": "v", "l": ""}, {"k": "v", "l": ""}),
        ("moment", "2027-01-31T18:00:00Z", datetime(2027, 1, 31, 18, tzinfo=UTC)),
        ("moment", "2027-01-31T18:00:00+01:00", datetime(2027, 1, 31, 17, tzinfo=UTC)),
    ],
)
def test_what_fits_is_read(name: str, value: Any, read: Any) -> None:
    found = Strict().load({name: value})[name]
    assert (found, type(found)) == (read, type(read))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("text", 5), ("text", ""), ("text", "abcdef"), ("text", "ABC"), ("text", "ab\n"), ("text", "a\x07"),
        ("text", ["a"]), ("text", None), ("text", True),
        ("whole", "1"), ("whole", True), ("whole", 1.0), ("whole", 0), ("whole", 11), ("whole", None), ("whole", [1]),
        ("flag", 1), ("flag", 0), ("flag", "true"), ("flag", "yes"), ("flag", None), ("flag", []),
        ("items", {"1": 1}), ("items", "123"), ("items", [1, 2, 3, 4]), ("items", ["1"]), ("items", None), ("items", 1),
        ("words", {"k": 1}), ("words", {"k": None}), ("words", {"": "v"}), ("words", {"k": "v" * 256}),
        ("words", {"a": "", "b": "", "c": ""}), ("words", ["k"]), ("words", "k"),
        ("moment", "2027-01-31T18:00:00"), ("moment", "2027-01-31"), ("moment", "tomorrow"), ("moment", 1801000000),
        ("moment", None), ("moment", "0001-01-01T00:00:00+14:00"), ("moment", "9999-12-31T23:59:59-14:00"),
        ("status", "available"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(name: str, value: Any) -> None:
    with pytest.raises(ValidationError) as raised:
        Strict().load({name: value})
    assert list(raised.value.messages) == [name]


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff", b"{", b"[1,]", b"{'a':1}", b'{"a":1}x', b"NaN", b"[Infinity]", b'{"a":-Infinity}', b"1e999",
     b"-1e999", b'{"a":1,"a":2}', b'{"x":{"a":1,"b":1,"a":1}}',
     b'"\\u0000"', b'{"\\u0000":1}', b'["\\ud800"]', b'{"\\udfff":1}',
     b"[" * 21 + b"]" * 21, b"[" * 500000, b'{"a":' * 100000, b"9" * 5000, b"\xef\xbb\xbf{}", "{}".encode("utf-16"),
     b'"\n"'],
    ids=lambda content: repr(content[:20]),
)  # fmt: skip
def test_what_is_no_document_is_refused(content: bytes) -> None:
    with pytest.raises(RequestInvalid):
        decode(content)


def test_documents_are_read_as_they_are() -> None:
    deepest = "[" * 20 + "]" * 20
    for document in ('{"a": [1, -2.5, "é\\ud83d\\ude00", null, true], "b": {"a": 1}}', deepest, "5", '"x"'):
        assert decode(document.encode()) == json.loads(document)


@pytest.mark.parametrize(
    "content", [b"[" * 1048576, b'"' * 1048576, b'"\\' * 524288, b"1," * 524288, b'{"a":"' + b'\\"' * 524000,
                b"[" + b"[]," * 349000 + b"[]]", b"[" + b"0," * 524000 + b"0]"],
    ids=lambda content: repr(content[:8]),
)  # fmt: skip
def test_the_largest_body_costs_little_time_whatever_it_is(api: Api, content: bytes) -> None:
    began = time.thread_time()
    answer = api("POST", PREVIEW, data=content[:1048576], content_type="application/json")
    assert time.thread_time() - began < 2
    assert answer.status_code == 400
    assert len(answer.data) < 20000


def test_a_list_over_its_length_is_refused_before_it_is_looked_at() -> None:
    began = time.thread_time()
    with pytest.raises(ValidationError) as raised:
        Strict().load({"items": ["x"] * 300000})
    assert time.thread_time() - began < 0.1
    assert raised.value.messages == {"items": ["Longer than maximum length 3."]}


@given(content=st.binary(max_size=300))
@unhurried
def test_no_bytes_make_it_fail(api: Api, content: bytes) -> None:
    answer = api("POST", PREVIEW, data=content, content_type="application/json")
    assert answer.status_code == 400, (content, answer.data)
    assert all(entry["code"].startswith("data-protection.") for entry in answer.json["errors"])


words = st.sampled_from(["schedule", "count", "after", "cron", "every", "zone", "start", "end", "anchor", "jitter",
                         "window", "full_cron", "full_every", "catch_up"])  # fmt: skip
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
    | st.sampled_from(["0 3 * * *", "* * * * *", "0 0 31 2 *", "Europe/Paris", "../../etc/passwd", "22:00-06:00",
                       "2027-01-31T18:00:00Z", "latest", "0 0 * * 7", "@daily", "UTC\0", "0001-01-01T00:00:00Z",
                       "9999-12-31T23:59:59Z", "1969-12-31T23:59:59Z"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words | st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


moments = st.datetimes(timezones=st.just(UTC)).map(datetime.isoformat)


@given(schedule=st.dictionaries(words, values, max_size=5), count=values)
@unhurried
def test_no_document_makes_it_fail(api: Api, schedule: dict[str, Any], count: Any) -> None:
    content = json.dumps({"schedule": schedule, "count": count})
    answer = api("POST", PREVIEW, data=content, content_type="application/json")
    assert answer.status_code in (200, 400), (content, answer.data)


@given(
    after=moments,
    schedule=st.fixed_dictionaries(
        {"cron": st.sampled_from(["0 3 * * *", "0 0 29 2 *"])},
        optional={
            "start": moments,
            "end": moments,
            "window": st.just("22:00-06:00"),
            "jitter": st.integers(0, 10**6),
            "zone": st.sampled_from(["Europe/Paris", "Pacific/Apia", "Nowhere"]),
        },
    )
    | st.fixed_dictionaries({"every": st.integers(1, 2**63)}, optional={"anchor": moments, "end": moments}),
)
@unhurried
def test_no_time_makes_it_fail(api: Api, after: str, schedule: dict[str, Any]) -> None:
    answer = api("POST", PREVIEW, json={"schedule": schedule, "after": after})
    assert answer.status_code in (200, 400), (after, schedule, answer.data)


@given(path=st.text(max_size=40), query=st.text(max_size=40), method=st.sampled_from(["GET", "PUT", "POST", "DELETE"]))
@unhurried
def test_no_address_makes_it_fail(api: Api, path: str, query: str, method: str) -> None:
    environ = {
        "PATH_INFO": "/v1/p1/" + path.encode("utf-8", "surrogatepass").decode("latin-1"),
        "QUERY_STRING": query.encode("utf-8", "surrogatepass").decode("latin-1"),
    }
    answer = api(method, "/", environ_overrides=environ)
    assert 400 <= answer.status_code < 500, (path, query, answer.data)
    assert answer.mimetype == "application/json"


@given(value=st.text(st.characters(max_codepoint=255, exclude_characters="\r\n"), max_size=60),
       name=st.sampled_from(["Authorization", "OpenStack-API-Version", "X-Openstack-Request-Id", "Content-Type", "Host",
                             "Content-Length", "If-Match", "Idempotency-Key", "Accept", "X-Forwarded-Host",
                             "Transfer-Encoding", "Content-Encoding", "Expect"]))  # fmt: skip
@unhurried
def test_no_header_makes_it_fail(api: Api, name: str, value: str) -> None:
    environ = {f"HTTP_{name.upper().replace('-', '_')}": value}
    if name in ("Content-Type", "Content-Length"):
        environ = {name.upper().replace("-", "_"): value}
    for method, path in (("GET", "/v1/p1/limits"), ("POST", PREVIEW), ("GET", "/")):
        answer = api(method, path, environ_overrides=environ)
        assert answer.status_code < 500, (name, value, answer.data)
        assert answer.mimetype == "application/json"


@pytest.fixture
def echo(make_api: Callable[..., Api]) -> Iterator[Api]:
    noun = Noun("echo", "/v1/<project:tenant_id>/echo", "Says what it was told.")

    class Asked(Body):
        size = fields.String()
        tag = fields.String()

    @noun.operation("GET", "", rule="show", allow=Allow.READER, does="Echo a query.", query=Asked)
    def show(tenant_id: str, query: dict[str, Any]) -> dict[str, Any]:
        return query

    yield make_api(noun)


def test_queries_are_strict_as_well(echo: Api) -> None:
    assert echo("GET", "/v1/p1/echo?size=1&tag=x").json == {"size": "1", "tag": "x"}
    assert error(echo("GET", "/v1/p1/echo?size=1&size=2"), 400, "request_invalid") == "size: Given more than once."
    assert error(echo("GET", "/v1/p1/echo?colour=1"), 400, "request_invalid") == "colour: Unknown field."
    assert error(echo("GET", "/v1/p1/echo?tag=%00"), 400, "request_invalid") == "tag: Holds a NUL."
    assert error(echo("GET", "/v1/p1/limits?size=1"), 400, "request_invalid") == "size: Unknown parameter."


def test_what_takes_no_body_gets_none(echo: Api) -> None:
    assert error(echo("GET", "/v1/p1/limits", data=b"{}"), 400, "request_invalid") == "body: This takes no body."
