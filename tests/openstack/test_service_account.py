"""Backups in an account that a tenant opens through the service alone."""

from __future__ import annotations

import pytest

from tests.openstack.cloud.rest import Api, Cloud, Refused
from tests.openstack.guest import Guest
from tests.openstack.service import Service, canary, gone


@pytest.mark.timeout(600)
def test_an_account_that_the_tenant_cannot_touch(
    tmp_path_factory: pytest.TempPathFactory, server: Guest, admin: Cloud, demo: Cloud
) -> None:
    # a short name: sockets are below it
    folder = tmp_path_factory.mktemp("account")
    folder.chmod(0o755)
    with Service(folder, admin, account="service") as raksha:
        raksha.sees(demo, server.server)
        job = raksha.of(demo).post("/backupjobs", {"name": "kept", "vms": [{"id": server.server}]})["id"]
        done = raksha.run(demo, job)
        assert done["state"] == "available", (done, raksha.logs()[-4000:])
        base = demo.swift.base.replace("/AUTH_", "/SERVICE_")
        with pytest.raises(Refused) as refused:
            Api(demo.login, base).ask("GET", f"/{raksha.prefix}_backupjobs")
        assert refused.value.status == 403
        raksha.of(demo).delete(f"/backupjobs/{job}?with_runs=true")
        raksha.wait(lambda: gone(raksha.of(demo), f"/backupjobs/{job}"))
        canary(raksha, demo)
