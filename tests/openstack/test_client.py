"""The command line with a login to Keystone, through both front doors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.openstack.cloud.layout import KEYSTONE_URL, PASSWORD
from tests.openstack.cloud.rest import Cloud
from tests.openstack.test_identity import Process

BIN = Path(sys.executable).parent
#: `raksha`, and `openstack protection`
DOORS = ([str(BIN / "raksha")], [str(BIN / "openstack"), "protection"])


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    made = Process(tmp_path_factory.mktemp("raksha"))
    made.start()
    yield made
    made.stop()


@pytest.mark.parametrize("door", DOORS, ids=["raksha", "openstack"])
def test_with_the_variables_of_an_openrc_file(api: Process, demo: Cloud, tmp_path: Path, door: list[str]) -> None:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("OS_", "RAKSHA_"))}
    login = {
        "OS_AUTH_URL": KEYSTONE_URL, "OS_USERNAME": demo.name, "OS_PASSWORD": PASSWORD,
        "OS_PROJECT_ID": demo.project, "OS_USER_DOMAIN_ID": "default", "OS_IDENTITY_API_VERSION": "3",
        "OS_DATA_PROTECTION_ENDPOINT_OVERRIDE": api.url,
    }  # fmt: skip

    def call(*words: str, code: int = 0, **more: str) -> Any:
        environment = {**clean, "HOME": str(tmp_path), **login, **more}
        found = subprocess.run([*door, *words], env=environment, capture_output=True, text=True, timeout=120)
        assert found.returncode == code and "Traceback" not in found.stderr, (api.log.read_text()[-2000:], found)
        return json.loads(found.stdout) if found.stdout.startswith(("[", "{")) else found.stderr

    name = Path(door[0]).name
    made = call("job", "create", name, "--tag", "protect", "--every", "day", "--at", "02:00", "-f", "json")
    assert made["project_id"] == demo.project and made["vm_selector"]["tags"] == ["protect"]
    assert [job["ID"] for job in call("job", "list", "--name", name, "-f", "json")] == [made["id"]]
    assert "request id req-" in call("service", "list", code=4)
    assert "job list` shows" in call("job", "show", "other", code=3)
    call("job", "delete", name)
    assert call("job", "list", "--name", name, "-f", "json")[0]["State"] == "deleting"
    if door == DOORS[0]:
        assert "OS_PASSWORD" in call("job", "list", code=2, OS_PASSWORD="wrong")
