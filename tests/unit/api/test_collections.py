"""Pages, ETags, repeated POSTs and links: on a noun of real backup jobs in a real database."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import flask
import pytest
from marshmallow import Schema, fields, validate
from openapi_spec_validator import validate as validate_openapi
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from raksha.api import etag, idempotency, links
from raksha.api.bodies import Body, Text
from raksha.api.nouns import Noun, answer
from raksha.api.pagination import collection, page_query, wanted
from raksha.api.policy import Allow
from raksha.api.services import services, settings
from raksha.config_api import Limits
from raksha.db import jobs
from raksha.db.models import BackupJob, IdempotencyKey
from raksha.db.session import Database
from raksha.errors import StillNeeded
from tests.unit.api.conftest import Api, basic, error

JOBS = "/v1/p1/things"
KEY = "Idempotency-Key"


class Written(Body):
    name = Text(least=1, most=40, required=True)


class ThingShown(Schema):
    id = fields.String()
    name = fields.String()
    created_at = fields.Integer()


class ThingsListed(Schema):
    backupjobs = fields.List(fields.Nested(ThingShown))
    backupjobs_links = fields.List(fields.Dict())


def noun() -> Noun:
    """As small as a noun can be."""
    made = Noun("things", "/v1/<project:tenant_id>/things", "Jobs.", aliases=("/v1/<project:tenant_id>/jobsalias",))

    @made.operation("GET", "", rule="list", allow=Allow.READER, does="List.", returns=ThingsListed,
                    query=page_query(jobs.COLUMNS, name=fields.String(validate=validate.Length(max=40))))  # fmt: skip
    def listed(tenant_id: str, query: dict[str, Any]) -> Any:
        where = [BackupJob.name == query["name"]] if "name" in query else []
        with services().database.reading() as session:
            page = jobs.listed(session, tenant_id, wanted(query, settings().limits.max_page_size), where)
        return collection("backupjobs", page.rows, page.rows[-1].id if page.more else None)

    @made.operation("GET", "/<id:backupjob_id>", rule="show", allow=Allow.READER, does="Show.", returns=ThingShown)
    def show(tenant_id: str, backupjob_id: str) -> Any:
        with services().database.reading() as session:
            job = jobs.get(session, tenant_id, backupjob_id)
        return job, etag.headers(job.version)

    @made.operation("POST", "", rule="create", allow=Allow.MEMBER, does="Create.", body=Written, returns=ThingShown,
                    status=201, repeatable=True)  # fmt: skip
    def create(tenant_id: str, body: dict[str, Any]) -> Any:
        def work(session: Session) -> flask.Response:
            def do() -> flask.Response:
                job = make(session, tenant_id, body["name"])
                if body["name"] == "refused":
                    raise StillNeeded(noun="backup job", id=job.id, found="active", detail="a test")
                session.flush()
                session.refresh(job)
                headers = {"Location": links.location(job.id), **etag.headers(job.version)}
                return answer(ThingShown, job, 201, headers)

            return idempotency.once(session, do)

        return services().database.run(work)

    @made.operation("PUT", "/<id:backupjob_id>", rule="update", allow=Allow.MEMBER, does="Update.", body=Written,
                    returns=ThingShown, if_match=True)  # fmt: skip
    def update(tenant_id: str, backupjob_id: str, body: dict[str, Any]) -> Any:
        def work(session: Session) -> BackupJob:
            job = jobs.get(session, tenant_id, backupjob_id)
            etag.require(job.version, jobs.NOUN, job.id)
            jobs.change(session, job.id, job.version, name=body["name"])
            return job

        job = services().database.run(work)
        return job, etag.headers(job.version)

    return made


def make(session: Session, project: str, name: str) -> BackupJob:
    return jobs.create(session, project_id=project, members=[], name=name)


@pytest.fixture
def served(make_api: Callable[..., Api]) -> Api:
    return make_api(noun(), limits=Limits(max_page_size=5))


@pytest.fixture
def twelve(served: Api, database: Database) -> list[str]:
    def work(session: Session) -> None:
        for number in range(12):
            make(session, "p1", f"job{number:02}")
        make(session, "p2", "foreign")

    database.run(work)
    return [f"job{number:02}" for number in range(12)]


def names(answer: Any) -> list[str]:
    assert answer.status_code == 200, answer.data
    return [job["name"] for job in answer.json["backupjobs"]]


def walk(api: Api, path: str) -> list[list[str]]:
    pages = []
    while True:
        answer = api("GET", path)
        pages.append(names(answer))
        if "backupjobs_links" not in answer.json:
            return pages
        (link,) = answer.json["backupjobs_links"]
        assert link["rel"] == "next"
        assert link["href"].startswith("http://localhost/v1/p1/")
        path = link["href"].removeprefix("http://localhost")


def test_pages_lead_through_the_whole_list(served: Api, twelve: list[str]) -> None:
    assert walk(served, f"{JOBS}?limit=5&sort=name:asc") == [twelve[:5], twelve[5:10], twelve[10:]]
    assert walk(served, f"{JOBS}?limit=4&sort=name:desc") == [twelve[:7:-1], twelve[7:3:-1], twelve[3::-1]]
    assert walk(served, f"{JOBS}?sort_key=name&sort_dir=asc&limit=4") == [twelve[:4], twelve[4:8], twelve[8:]]
    assert walk(served, f"{JOBS}?sort=name&name=job03") == [["job03"]]
    assert sorted(name for page in walk(served, JOBS) for name in page) == twelve


def test_a_limit_above_the_highest_is_the_highest(served: Api, twelve: list[str]) -> None:
    assert len(names(served("GET", f"{JOBS}?limit=1000000"))) == 5
    assert len(names(served("GET", JOBS))) == 5


@pytest.mark.parametrize(
    "query",
    ["limit=0", "limit=-1", "limit=x", "limit=1.5", "limit=", "limit=%2B5", "limit=٣", "limit=" + "9" * 30,
     "sort=colour",
     "sort=name:up", "sort=name,name", "sort=", "sort=name;drop table", "sort=name:asc:desc", "sort_key=project_id",
     "sort_key=name&sort_dir=up", "sort_dir=asc", "sort=name&sort_key=name", "marker=", "marker=nothing",
     "marker=' or 1=1 --", "offset=5", "limit=1&limit=2"],
)  # fmt: skip
def test_pages_that_cannot_be_meant_are_refused(served: Api, twelve: list[str], query: str) -> None:
    assert served("GET", f"{JOBS}?{query}").status_code == 400


def test_a_marker_of_another_project_is_unknown(served: Api, twelve: list[str]) -> None:
    foreign = served("GET", "/v1/p2/things", "stranger").json["backupjobs"][0]["id"]
    assert error(served("GET", f"{JOBS}?marker={foreign}"), 400, "marker_unknown") == (
        f"The marker {foreign} is not in this list."
    )


def test_the_alias_is_the_same_and_under_the_same_rule(served: Api, twelve: list[str]) -> None:
    assert names(served("GET", "/v1/p1/jobsalias?sort=name&limit=2")) == twelve[:2]
    error(served("GET", "/v1/p2/jobsalias"), 404, "not_found")
    error(served("GET", "/v1/p1/jobsalias", None), 401, "not_authenticated")
    assert "jobsalias" not in served("GET", "/openapi.json", None).get_data(as_text=True)


def create(api: Api, **given: Any) -> Any:
    answer = api("POST", JOBS, json={"name": "one"}, **given)
    assert answer.status_code == 201, answer.data
    return answer


def test_what_was_made_is_where_location_says(served: Api) -> None:
    made = create(served)
    assert made.headers["Location"] == f"http://localhost{JOBS}/{made.json['id']}"
    assert served("GET", made.headers["Location"]).json == made.json


def test_a_change_needs_the_etag_that_was_read(served: Api) -> None:
    path = f"{JOBS}/{create(served).json['id']}"
    tag = served("GET", path).headers["ETag"]
    error(served("PUT", path, json={"name": "two"}), 428, "condition_missing")
    error(served("PUT", path, json={"name": "two"}, headers={"If-Match": " "}), 428, "condition_missing")
    for wrong in ('"999"', "W/" + tag, "nonsense", tag.strip('"') + "0"):
        error(served("PUT", path, json={"name": "two"}, headers={"If-Match": wrong}), 412, "condition_failed")
    assert served("GET", path).json["name"] == "one"

    changed = served("PUT", path, json={"name": "two"}, headers={"If-Match": f'"x", {tag}'})
    assert (changed.status_code, changed.json["name"]) == (200, "two")
    assert changed.headers["ETag"] != tag
    error(served("PUT", path, json={"name": "three"}, headers={"If-Match": tag}), 412, "condition_failed")
    assert served("PUT", path, json={"name": "four"}, headers={"If-Match": "*"}).status_code == 200
    assert served("GET", path).json["name"] == "four"


def test_the_condition_comes_before_the_body_and_after_the_policy(served: Api) -> None:
    path = f"{JOBS}/{create(served).json['id']}"
    error(served("PUT", path, data=b"{"), 428, "condition_missing")
    error(served("PUT", path, "reader", data=b"{"), 403, "not_allowed")
    error(served("PUT", f"{JOBS}/{uuid.uuid4()}", json={"name": "x"}, headers={"If-Match": "*"}), 404, "not_found")


def count(database: Database, table: Any) -> int:
    with database.reading() as session:
        return session.execute(select(func.count()).select_from(table)).scalar_one()


def test_a_repeated_post_is_done_once_and_answered_the_same(served: Api, database: Database) -> None:
    headers = {KEY: str(uuid.uuid4())}
    first, again = create(served, headers=headers), create(served, headers=headers)
    assert count(database, BackupJob) == 1
    assert again.json == first.json
    for name in ("Location", "ETag"):
        assert again.headers[name] == first.headers[name]
    create(served, headers={KEY: str(uuid.uuid4())})
    create(served)
    create(served)
    assert count(database, BackupJob) == 4


def test_a_key_is_of_one_request_of_one_user_in_one_project(served: Api, database: Database) -> None:
    headers = {KEY: str(uuid.uuid4())}
    create(served, headers=headers)
    error(served("POST", JOBS, json={"name": "two"}, headers=headers), 409, "idempotency_key_reused")
    error(served("POST", JOBS, "admin", json={"name": "one"}, headers=headers), 409, "idempotency_key_reused")
    other = served("POST", "/v1/p2/things", None, json={"name": "one"}, headers={**headers, **basic("stranger")})
    assert other.status_code == 201
    assert count(database, BackupJob) == 2


def test_what_was_refused_left_no_key(served: Api, database: Database) -> None:
    headers = {KEY: str(uuid.uuid4())}
    error(served("POST", JOBS, json={"name": "refused"}, headers=headers), 409, "still_needed")
    assert (count(database, BackupJob), count(database, IdempotencyKey)) == (0, 0)
    create(served, headers=headers)


@pytest.mark.parametrize("key", ["", "short", "x" * 129, "with space here", "with/slash/here", "é" * 10])
def test_a_key_that_is_none_is_refused(served: Api, database: Database, key: str) -> None:
    answer = served("POST", JOBS, json={"name": "one"}, headers={KEY: key})
    error(answer, 400, "request_invalid")
    assert count(database, BackupJob) == 0


def test_conditions_and_pages_are_documented(served: Api) -> None:
    document = served("GET", "/openapi.json", None).json
    validate_openapi(document)
    listed = document["paths"]["/v1/{tenant_id}/things"]["get"]
    assert {parameter["name"] for parameter in listed["parameters"]} == {
        "limit", "marker", "sort", "sort_key", "sort_dir", "name"
    }  # fmt: skip
    changed = document["paths"]["/v1/{tenant_id}/things/{backupjob_id}"]["put"]
    (condition,) = changed["parameters"]
    assert (condition["name"], condition["in"], condition["required"]) == ("If-Match", "header", True)
    assert {"200", "400", "412", "428"} <= set(changed["responses"])
    created = document["paths"]["/v1/{tenant_id}/things"]["post"]
    assert [parameter["name"] for parameter in created["parameters"]] == ["Idempotency-Key"]
    assert {"201", "409"} <= set(created["responses"])
