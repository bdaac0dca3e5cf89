"""What is looked at more than changed: `client.vms`, `vaults`, `services`, `usage`, `limits`."""

from __future__ import annotations

from collections.abc import Iterator
from types import NoneType
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from raksha.client import naming
from raksha.client.records import Limits, Page, Service, Usage, Vault, Vm
from raksha.client.transport import Answer, Transport, quoted


class Vms:
    """What the project may protect."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def list(self, *, limit: int | None = None, marker: str | None = None, sort: str | None = None,
             **filters: Any) -> Iterator[Vm]:  # fmt: skip
        """All of them, or the first `limit`. Filters: `name`, `power`."""
        return self._transport.all(Vm, "vms", "/vms", {"marker": marker, "sort": sort, **filters}, limit)

    def page(self, *, limit: int | None = None, marker: str | None = None, sort: str | None = None,
             **filters: Any) -> Page[Vm]:  # fmt: skip
        return self._transport.page(Vm, "vms", "/vms", {"limit": limit, "marker": marker, "sort": sort, **filters})

    def get(self, id: str) -> Vm:
        """With the jobs that name it. Raises `NotFound`."""
        return self._transport.ask(Vm, "GET", f"/vms/{quoted(id)}").value

    def find(self, name_or_id: str) -> Vm:
        """Raises `NoSuch`, `Ambiguous`."""
        if naming.is_id(name_or_id):
            return naming.by_id("vm", name_or_id, self.get)
        return naming.one("vm", name_or_id, self.list(name=name_or_id))


class _Vaults(Struct):
    vaults: tuple[Vault, ...]


class Vaults:
    """Where the project's jobs may store; the default is the first."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def list(self) -> Iterator[Vault]:
        yield from self._transport.ask(_Vaults, "GET", "/vaults").value.vaults

    def find(self, name_or_id: str) -> Vault:
        """Raises `NoSuch`, `Ambiguous`."""
        found = list(self.list())
        return naming.one("vault", name_or_id, [each for each in found if name_or_id in (each.id, each.name)])


class Services:
    """The processes of Raksha, for operators."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def list(self, *, limit: int | None = None, marker: str | None = None, sort: str | None = None,
             **filters: Any) -> Iterator[Service]:  # fmt: skip
        """Filters: `kind`, `state` (one or several), `host`."""
        query = {"marker": marker, "sort": sort, **filters}
        return self._transport.all(Service, "services", "/services", query, limit)

    def page(self, *, limit: int | None = None, marker: str | None = None, sort: str | None = None,
             **filters: Any) -> Page[Service]:  # fmt: skip
        query = {"limit": limit, "marker": marker, "sort": sort, **filters}
        return self._transport.page(Service, "services", "/services", query)

    def get(self, id: str) -> Service:
        return _service(self._transport.ask(Service, "GET", f"/services/{quoted(id)}"))

    def update(self, id: str, *, state: str, reason: str | None = None, etag: str | None = None) -> Service:
        """`state`: `enabled`, `draining`, `disabled`. Raises `ChangedMeanwhile`."""
        known = etag or self.get(id).etag
        body = {"state": state, "reason": reason}
        return _service(self._transport.ask(Service, "PUT", f"/services/{quoted(id)}", body=body, if_match=known))

    def delete(self, id: str) -> None:
        """Forget one that has been silent for ten minutes."""
        self._transport.ask(NoneType, "DELETE", f"/services/{quoted(id)}")


class _Usage(Struct):
    usage: Usage


class Used:
    """`client.usage`: what the project has."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def get(self) -> Usage:
        return self._transport.ask(_Usage, "GET", "/usage").value.usage


class _Limits(Struct):
    limits: Limits


class Limited:
    """`client.limits`: what the project may have."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def get(self) -> Limits:
        return _limits(self._transport.ask(_Limits, "GET", "/limits"))

    def update(self, *, etag: str | None = None, **changes: int | None) -> Limits:
        """`max_jobs`, `max_runs`, `max_stored_bytes`, `max_concurrent_runs`; -1: any number, None: the default. For
        operators. Raises `ChangedMeanwhile`."""
        known = etag or self.get().etag
        return _limits(self._transport.ask(_Limits, "PUT", "/limits", body=changes, if_match=known))


def _service(answer: Answer[Service]) -> Service:
    return replace(answer.value, etag=answer.etag)


def _limits(answer: Answer[_Limits]) -> Limits:
    return replace(answer.value.limits, etag=answer.etag)
