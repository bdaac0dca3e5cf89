"""What is in a tenant's vault, read with the tenant's own token by Raksha's own restore."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

from raksha.agent.sources import disk_sources
from raksha.restore.context import Context
from raksha.restore.disk import restore_disk
from raksha.restore.targets import RawFile
from raksha.vault.address import open_store
from raksha.vault.catalog import Catalog
from raksha.vault.credentials import LentCredentials, TokenCredentials
from tests.openstack.cloud.rest import Cloud
from tests.openstack.service import Service


def disk_of(raksha: Service, cloud: Cloud, run: Any, disk: str, folder: Path) -> Path:
    """A disk at a restore point, as a sparse raw file."""
    (vm,) = run["vms"]
    given = LentCredentials(TokenCredentials(storage_url=cloud.swift.base, token=cloud.token))
    with closing(open_store(f"swift://{raksha.prefix}", credentials=given)) as store:
        catalog = Catalog.open(store)
        found = catalog.run(run["backupjob_id"], run["id"])
        assert found is not None, f"run {run['id']} is not in the vault"
        (source,) = disk_sources(catalog, found, catalog.vm(found, vm["vm_id"]), [disk])
        path = folder / f"{run['id']}-{disk}.raw"
        restore_disk(source, RawFile(path), Context(folder))
    return path
