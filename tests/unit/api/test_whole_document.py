"""Every operation of the OpenAPI document, with whatever its schemas allow, and whatever they do not.

Ids are mostly those of things that are there, so that requests get behind the first look. What may never happen: a 5xx,
an answer that is not as the document says, a body taken that the document forbids.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import Case, GenerationMode
from schemathesis.checks import CheckFunction, not_a_server_error
from schemathesis.core.parameters import ParameterLocation
from schemathesis.specs.openapi import checks

from raksha.api import http_basic
from raksha.api.app import create_app
from raksha.api.services import Services
from raksha.config_api import ApiSettings, Limits
from raksha.config_database import DatabaseSettings
from raksha.db.models import Base
from raksha.db.session import connect
from tests.unit.api import world
from tests.unit.api.conftest import HASHED, Api, basic, write_private

#: of each operation
EXAMPLES = 25
LOOKED_AT = (ParameterLocation.BODY, ParameterLocation.QUERY)
CHECKS: list[CheckFunction] = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
    checks.response_headers_conformance,
]


class Served:
    """An API with something of everything, and the ids of that."""

    def __init__(self, directory: Path) -> None:
        users = write_private(directory / "users", f"admin:{HASHED}:p1:admin\n")
        self.database = connect(DatabaseSettings(f"sqlite:///{directory}/raksha.db"))
        Base.metadata.create_all(self.database.engine)
        limits = Limits(max_jobs=100_000, max_runs_under_way=100_000, max_restores_under_way=100_000)
        services = Services(self.database, http_basic.HttpBasic(users), {})
        self.app = create_app(ApiSettings(limits=limits), services)
        self.agent = world.agents(self.database)
        world.vault(self.database)
        self.known = self.fill()

    def fill(self) -> dict[str, str]:
        api = Api(self.app)
        job = world.job(api, "admin", schedule={"every": 3600}, retention={"daily": 3})
        base = world.point(self.database, job["id"])
        point = world.point(self.database, job["id"], parent=base)
        queued = world.run(self.database, job["id"])
        at = f"/v1/p1/backupjobs/{job['id']}/backupjobruns/{point.id}"
        restore = api("POST", at, "admin", json={"target": {"kind": "files"}}).json
        # one of each at a time: not of the point that the operations are about
        verification = api("POST", f"{at.replace(point.id, base.id)}/verify", "admin").json
        return {
            "tenant_id": "p1", "backupjob_id": job["id"], "backupjobrun_id": point.id, "restore_id": restore["id"],
            "verification_id": verification["id"], "vm_id": world.WEB, "service_id": self.agent.id, "queued": queued.id,
        }  # fmt: skip


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    made = Served(tmp_path_factory.mktemp("served"))
    yield made
    made.database.close()


@pytest.fixture(scope="module")
def schema(served: Served) -> Any:
    return schemathesis.openapi.from_wsgi("/openapi.json", served.app)


DOCUMENT = json.loads((Path(__file__).parents[3] / "docs/openapi.json").read_bytes())
OPERATIONS = [(method, path) for path, item in DOCUMENT["paths"].items() for method in item if method != "parameters"]


@pytest.mark.parametrize(("method", "path"), OPERATIONS, ids=lambda value: value.replace("/v1/{tenant_id}", ""))
def test_no_request_makes_it_fail_or_answer_otherwise_than_documented(
    schema: Any, served: Served, method: str, path: str
) -> None:
    operation = schema[path][method.upper()]
    valid, wrong = operation.as_strategy(), operation.as_strategy(generation_mode=GenerationMode.NEGATIVE)
    served.known = served.fill()
    seen: Counter[int] = Counter()

    @given(case=valid | wrong)
    @settings(max_examples=EXAMPLES, deadline=None, derandomize=True, database=None,
              suppress_health_check=list(HealthCheck))  # fmt: skip
    def ask(case: Case) -> None:
        if method == "delete" and "backupjob" in path:
            served.known = served.fill()
        known = {**served.known, "backupjobrun_id": served.known["queued"]} if "cancel" in path else served.known
        for name in case.path_parameters or {}:
            case.path_parameters[name] = known[name]
        # the rest of what was made wrong is put right
        made = case.meta.components
        broken = any(made[where].mode.is_negative for where in LOOKED_AT if where in made)
        if not broken and isinstance(case.body, dict):
            make_fit(case.body)
        more = {"If-Match": "*"} if method == "put" and not broken else {}
        response = case.call_and_validate(headers={**basic("admin"), **more}, checks=CHECKS)
        seen[response.status_code] += 1
        if broken:
            assert 400 <= response.status_code < 500, (case.query, case.body, response.text)

    ask()
    assert any(status < 300 for status in seen) or path.endswith("/{service_id}"), seen


def make_fit(body: dict[str, Any]) -> None:
    """What a schema allows, and the world does not: names of things that are not there, schedules that never fire."""
    for name, value in (("vms", [{"id": world.WEB}]), ("schedule", {"cron": "0 3 * * *"}), ("retention", {"daily": 1})):
        if body.get(name):
            body[name] = value
    body.pop("vault_service_id", None)
    if "name" in body and "vms" not in body:
        body["vms"] = [{"id": world.WEB}]
    if "target" in body:
        body["target"] = {"kind": "files"}
