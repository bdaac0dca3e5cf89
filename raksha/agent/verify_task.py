"""VERIFY: stored copies, and all that they build on, looked at or read."""

from __future__ import annotations

import msgspec

from raksha.agent.host import Host
from raksha.agent.verify import copies_of
from raksha.agent.work import Work
from raksha.restore.verify import Finding, verify
from raksha.tasks import Verified, VerifyOrder


class VerifyTask:
    """One use. Changes nothing, so it may be repeated."""

    def __init__(self, host: Host, work: Work, order: VerifyOrder) -> None:
        self._host = host
        self._work = work
        self._order = order

    def __call__(self) -> Verified:
        """Raises `VaultError`, `Interrupted`; damage is no error, it is told."""
        keys = [copy.key for copy in self._order.copies]
        self._work.progress.step("verifying")
        with self._host.catalog(self._work) as catalog:
            copies, findings = copies_of(catalog, keys)
            findings += verify(catalog.store, copies, self._host.context(self._work), data=self._order.data)
        hit = {key for finding in findings for key in finding.hits}
        sound = tuple(key for key in keys if key not in hit)
        return Verified(sound=sound, findings=tuple(map(_document, findings)))


def _document(finding: Finding) -> dict[str, object]:
    return dict(msgspec.to_builtins(finding))
