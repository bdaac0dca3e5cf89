"""raksha-api behind a real Keystone: who a caller is, and whose things it is shown."""

from __future__ import annotations

import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bed.swift import free_ports
from tests.openstack.cloud.configuration import authtoken, ini
from tests.openstack.cloud.daemons import run
from tests.openstack.cloud.layout import KEYSTONE, REPOSITORY
from tests.openstack.cloud.rest import Api, Cloud, Refused
from tests.openstack.service import answers

JOB = {"name": "nightly", "vm_selector": {"tags": ["protect"]}}


class Process:
    """raksha-api with a database of its own."""

    def __init__(self, folder: Path) -> None:
        (port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{port}"
        self._file = folder / "raksha.conf"
        ini(
            self._file,
            {
                "api": {"auth_strategy": "keystone", "bind": f"127.0.0.1:{port}"},
                "database": {"connection": f"sqlite:///{folder}/raksha.db"},
                "keystone_authtoken": authtoken("raksha", "data-protection"),
            },
        )
        self.log = folder / "log"

    def start(self) -> None:
        run(sys.executable, "-m", "raksha.cmd.manage", "--config", self._file, "db", "upgrade")
        with self.log.open("wb") as log:
            command = ["setpriv", "--pdeathsig", "KILL", sys.executable, "-m", "raksha.cmd.api", "--config", self._file]
            self._process = subprocess.Popen(command, stdout=log, stderr=log, cwd=REPOSITORY)
        deadline = time.monotonic() + 60
        while not answers(self.url):
            assert time.monotonic() < deadline and self._process.poll() is None, self.log.read_text()
            time.sleep(0.2)

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(60)

    def of(self, cloud: Cloud) -> Api:
        """As this user sees it, in its project."""
        return Api(cloud.login, f"{self.url}/v1/{cloud.project}")


@pytest.fixture(scope="module")
def raksha(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    process = Process(tmp_path_factory.mktemp("api"))
    process.start()
    yield process
    process.stop()


def refused(api: Api, verb: str, path: str, body: object = None, **more: object) -> int:
    with pytest.raises(Refused) as told:
        api.ask(verb, path, body, **more)
    return told.value.status


def test_a_tenant_s_jobs_are_nobody_else_s(raksha: Process, demo: Cloud, alt: Cloud, admin: Cloud) -> None:
    made = raksha.of(demo).post("/backupjobs", JOB)["id"]
    assert [job["id"] for job in raksha.of(demo).get("/backupjobs")["backupjobs"]] == [made]
    assert raksha.of(alt).get("/backupjobs")["backupjobs"] == []
    assert refused(raksha.of(alt), "GET", f"/backupjobs/{made}") == 404
    # with the other's project in the address
    beside = Api(alt.login, f"{raksha.url}/v1/{demo.project}")
    assert refused(beside, "GET", "/backupjobs") == 404
    assert refused(beside, "DELETE", f"/backupjobs/{made}") == 404
    above = Api(admin.login, f"{raksha.url}/v1/{demo.project}")
    assert [job["id"] for job in above.get("/backupjobs")["backupjobs"]] == [made]


def test_a_reader_reads(raksha: Process, admin: Cloud, demo: Cloud) -> None:
    body = {"user": {"name": "onlooker", "password": "s3cret", "domain_id": "default"}}
    user = admin.keystone.post("/users", body)["user"]["id"]
    try:
        role = admin.keystone.get("/roles?name=reader")["roles"][0]["id"]
        admin.keystone.put(f"/projects/{demo.project}/users/{user}/roles/{role}")
        reader = Cloud("onlooker", demo.name)
        raksha.of(reader).get("/backupjobs")
        assert refused(raksha.of(reader), "POST", "/backupjobs", JOB) == 403
    finally:
        admin.keystone.delete(f"/users/{user}")


def test_no_token_a_wrong_one_and_one_of_no_project(raksha: Process, demo: Cloud) -> None:
    url = f"{raksha.url}/v1/{demo.project}/backupjobs"
    for headers in ({}, {"X-Auth-Token": "gAAAA"}, {"X-Identity-Status": "Confirmed", "X-Project-Id": demo.project}):
        with pytest.raises(urllib.error.HTTPError) as told:
            urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=20)
        assert told.value.code == 401
        assert told.value.headers["WWW-Authenticate"] == f'Keystone uri="http://127.0.0.1:{KEYSTONE}/"'
    assert demo.token not in raksha.log.read_text()
