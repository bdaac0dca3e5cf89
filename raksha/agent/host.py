"""What every task on this host works with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from raksha.agent.captures import OpenCaptures
from raksha.agent.metrics import Metrics
from raksha.agent.recovery import Recovery
from raksha.agent.said import Said
from raksha.agent.work import Work
from raksha.config import Settings
from raksha.config_agent import AgentSettings
from raksha.errors import VaultForeign
from raksha.journal import Journal
from raksha.restore.context import Context
from raksha.rpc import Caller
from raksha.tasks import BackupOrder, BootOrder, RestoreOrder, VerifyOrder
from raksha.vault.address import open_store
from raksha.vault.catalog import Catalog
from raksha.vault.recorded import Record
from raksha.virt.libvirt.engines import LibvirtEngines


class Host(Struct, frozen=True):
    """Shared by all threads."""

    settings: Settings
    agent: AgentSettings
    journal: Journal
    #: any of them
    schedulers: Caller
    captures: OpenCaptures
    recovery: Recovery
    #: what is repeated until somebody has heard it
    said: Said
    metrics: Metrics

    def engines(self, name: str = "auto") -> LibvirtEngines:
        """Each task has a connection of its own: one that breaks, breaks no other. `auto`: as the host's settings."""
        settings = self.settings if name == "auto" else replace(self.settings, engine=name)
        return LibvirtEngines(settings, self.journal)

    @contextmanager
    def catalog(self, work: Work) -> Iterator[Catalog]:
        """The vault of a task, to be read. Raises `VaultForeign` if another one stands there, and what vaults raise."""
        access = work.claimed.vault
        if access is None:
            raise VaultForeign(url="none", detail="the task names no vault")
        patience = self.settings.vault_patience
        store = open_store(access.url, retry_deadline=patience, cancel=work.over, credentials=work.lent)
        with closing(store):
            catalog = Catalog.open(store)
            if catalog.vault.id != access.vault_uuid:
                detail = f"vault {catalog.vault.id} stands there, not {access.vault_uuid}"
                raise VaultForeign(url=access.url, detail=detail)
            yield catalog.recorded(_known(work))

    def context(self, work: Work) -> Context:
        """Of a restore or a verification."""
        return Context(self._spool(), self.settings.workers, work.progress, work.over)

    def restore_dirs(self) -> tuple[Path, ...]:
        return self.agent.restore_dirs or (self.settings.state_dir / "restores",)

    def boot_dir(self) -> Path:
        """Where VMs that are booted for a test have their disks."""
        return self.agent.test_restore_dir or (self.settings.state_dir / "boots")

    def _spool(self) -> Path:
        spool = self.settings.state_dir / "spool"
        spool.mkdir(parents=True, exist_ok=True, mode=0o700)
        return spool


def _known(work: Work) -> Record:
    """What the order tells of the copies in the vault."""
    order = work.order
    if isinstance(order, RestoreOrder | BootOrder):
        return Record(order.recorded or (), machine=order.machine_digest, only=order.recorded is not None)
    if isinstance(order, VerifyOrder):
        return Record(order.recorded or (), only=order.recorded is not None)
    return Record(order.recorded if isinstance(order, BackupOrder) else ())
