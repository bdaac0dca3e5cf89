"""Horizon's test case with a service behind it: the real client library, and answers of the API as it gives them."""

from __future__ import annotations

from typing import Any

import requests_mock
from openstack_dashboard.test import helpers

ENDPOINT = "http://raksha.example:9797"
NOW = "2026-11-22T22:00:00+00:00"
VM = "11111111-1111-4111-8111-111111111111"
JOB = "22222222-2222-4222-8222-222222222222"
RUN = "33333333-3333-4333-8333-333333333333"
RESTORE = "44444444-4444-4444-8444-444444444444"
VERIFICATION = "55555555-5555-4555-8555-555555555555"


def job(**more: Any) -> dict[str, Any]:
    return {
        "id": JOB, "name": "nightly", "state": "active", "enabled": True, "created_at": NOW, "updated_at": NOW,
        "vms": [{"id": VM, "excluded_disks": ["vdb"]}], "schedule": {"cron": "30 22 * * *", "zone": "UTC"},
        "retention": {"daily": 7, "zone": "UTC"}, "next_run_at": NOW, **more,
    }  # fmt: skip


def run(**more: Any) -> dict[str, Any]:
    return {
        "id": RUN, "backupjob_id": JOB, "state": "available", "kind": "full", "trigger": "request", "created_at": NOW,
        "taken_at": NOW, "finished_at": NOW, "started_at": NOW, "consistency": "quiesced", "bytes_stored": 5 << 20,
        "progress": {"bytes_total": 1 << 30, "bytes_done": 1 << 30, "bytes_sent": 9 << 20, "percent": 100}, **more,
    }  # fmt: skip


def vm_of_run(**more: Any) -> dict[str, Any]:
    disk = {"id": "d", "resource": "vda", "size": 1 << 30, "kind": "full", "reason": "first_run"}
    return {
        "vm_id": VM, "name": "instance-0001", "state": "stored", "taken_at": NOW, "resources": [disk],
        "server": {"name": "web", "flavor": {"name": "m1.small"}, "key_name": "mine"}, **more,
    }  # fmt: skip


def vm(**more: Any) -> dict[str, Any]:
    disks = [{"target": "vda", "size": 1 << 30}, {"target": "vdb", "size": 2 << 30}]
    return {"id": VM, "name": "web", "power": "running", "disks": disks, "seen_at": NOW, **more}


def restore(**more: Any) -> dict[str, Any]:
    return {
        "id": RESTORE, "state": "done", "target": {"kind": "server"}, "created_at": NOW, "vms": [],
        "progress": {"bytes_total": 100, "bytes_done": 100, "percent": 100},
        "result": {"vms": [{"vm": VM, "name": "web-restored", "disks": [{"disk": "vda", "image": "img"}]}]}, **more,
    }  # fmt: skip


def verification(**more: Any) -> dict[str, Any]:
    return {
        "id": VERIFICATION, "state": "done", "backupjob_id": JOB, "created_at": NOW, "trigger": "request",
        "progress": {"percent": 100}, **more,
    }  # fmt: skip


class TestCase(helpers.TestCase):
    """`self.api.get(...)`, `post`, … of requests_mock: what is not said is not there."""

    def setUp(self) -> None:
        super().setUp()
        self.base = f"{ENDPOINT}/v1/{self.tenant.id}"
        self.api = requests_mock.Mocker()
        self.api.start()
        self.addCleanup(self.api.stop)

    def _setup_user(self, **kwargs: Any) -> None:
        endpoint = {"region": "RegionOne", "interface": "public", "publicURL": f"{ENDPOINT}/v1/x",
                    "url": f"{ENDPOINT}/v1/x", "internalURL": ENDPOINT, "adminURL": ENDPOINT}  # fmt: skip
        entry = {"type": "data-protection", "name": "raksha", "endpoints": [endpoint], "endpoints_links": []}
        super()._setup_user(service_catalog=[*self.service_catalog, entry], **kwargs)

    def answers(self, path: str, method: str = "GET", status: int = 200, **body: Any) -> Any:
        headers = {"X-Openstack-Request-Id": "req-1", "ETag": '"1"'}
        return self.api.register_uri(method, self.base + path, json=body, status_code=status, headers=headers)

    def refuses(self, path: str, method: str = "GET", status: int = 409, code: str = "state_conflict") -> Any:
        entry = {"code": f"data-protection.{code}", "detail": "It is protected", "request_id": "req-refused"}
        return self.answers(path, method, status, errors=[entry])

    def jobs(self, *runs: dict[str, Any], **more: Any) -> None:
        """A job, its runs, its VM."""
        self.answers("/vms", vms=[vm()])
        self.answers("/backupjobs", backupjobs=[job(**more)])
        self.answers(f"/backupjobs/{JOB}", **job(**more))
        self.answers(f"/backupjobs/{JOB}/backupjobruns", backupjobruns=list(runs))
        for each in runs:
            self.answers(f"/backupjobs/{JOB}/backupjobruns/{each['id']}", **{**each, "vms": [vm_of_run()]})

    def messages(self, response: Any) -> str:
        return " ".join(str(each) for each in response.context["messages"]) if response.context else ""
