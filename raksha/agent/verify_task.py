"""VERIFY: stored copies, and all that they build on, looked at or read."""

from __future__ import annotations

import msgspec

from raksha.agent.host import Host
from raksha.agent.verify import copies_of
from raksha.agent.work import Work
from raksha.backup.throttle import Bucket, ThrottledReads
from raksha.restore.context import Context
from raksha.restore.verify import Finding, Share, verify
from raksha.tasks import Verified, VerifyOrder
from raksha.vault.catalog import Catalog
from raksha.vault.store import Store


class VerifyTask:
    """One use. It puts back what was there and changes nothing else, so it may be repeated."""

    def __init__(self, host: Host, work: Work, order: VerifyOrder) -> None:
        self._host = host
        self._work = work
        self._order = order

    def __call__(self) -> Verified:
        """Raises `VaultError`, `Interrupted`; damage is no error, it is told."""
        self._work.progress.step("verifying")
        with self._host.catalog(self._work) as catalog:
            return carry_out(catalog, self._order, self._limited(catalog.store), self._host.context(self._work))

    def _limited(self, store: Store) -> Store:
        limit = self._order.bandwidth_limit
        return store if limit is None else ThrottledReads(store, Bucket(limit, self._work.over))


def carry_out(catalog: Catalog, order: VerifyOrder, store: Store, context: Context) -> Verified:
    """`store`: by which data is read. Raises as `VerifyTask` does."""
    keys = [copy.key for copy in order.copies]
    healed: list[str] = []
    copies, findings = copies_of(catalog, keys, order.machines)
    findings += verify(
        store, copies, context, data=order.data,
        share=Share(order.percent, order.offset), healed=healed if order.heal else None,
    )  # fmt: skip
    hit = {key for finding in findings for key in finding.hits}
    sound = tuple(key for key in keys if key not in hit)
    return Verified(sound=sound, findings=tuple(map(_document, findings)), healed=tuple(healed))


def _document(finding: Finding) -> dict[str, object]:
    return dict(msgspec.to_builtins(finding))
