"""What a backup from storage makes in Cinder for the time being: snapshots of volumes, and volumes of those snapshots.

All of it bears marks in its metadata, by which it is found again, whoever looks and whatever became of who made it::

    raksha_task     the task: the next attempt of it removes what an earlier one has left, schedulers what is left over
    raksha_claim    the attempt: whoever is overtaken removes nothing of the next one

A snapshot that stays, so that the next run can be told what has changed since, bears others::

    raksha_job, raksha_run, raksha_vm       of which job, at which restore point, for which server or volume
    raksha_claim                            of which attempt

Not promised: that a snapshot whose making was answered by nobody is found at once. It is found once Cinder lists it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any, TypeVar
from urllib.parse import urlencode

from msgspec import Struct

from raksha.errors import CloudMissing, CloudRefused, CloudUnavailable
from raksha.openstack.lent import LentLogin, asking

TASK, CLAIM = "raksha_task", "raksha_claim"
JOB, RUN, VM = "raksha_job", "raksha_run", "raksha_vm"

_SERVICE = "block-storage"
#: what people see it called
_NAME = "raksha (temporary)"
#: seconds between two looks: soon at first, most snapshots are there at once
_POLLS = (0.1, 0.2, 0.4)
_POLL = 1.0
#: seconds for a snapshot to be made, a volume to be filled from one, and either to go
_MAKE, _FILL, _GO = 600.0, 7200.0, 600.0
#: of a list, in one answer
_PAGE = 200
#: what cannot be deleted yet
_UNDER_WAY = ("creating", "deleting", "attaching", "detaching", "reserved", "in-use", "downloading", "error_deleting")

T = TypeVar("T")


class VolumeState(Struct, frozen=True, kw_only=True):
    """A volume as far as a capture must know it."""

    id: str
    #: `available`, `in-use`, …
    status: str
    #: GiB
    size: int
    encrypted: bool


class Snapshot(Struct, frozen=True, kw_only=True):
    id: str
    volume_id: str
    status: str
    #: GiB
    size: int
    metadata: dict[str, str]


def volume_state(cloud: LentLogin, volume_id: str) -> VolumeState:
    """Raises `CloudMissing`, `CloudRefused`, `CloudUnavailable`."""
    with asking(_SERVICE):
        shown = _ask(cloud, "get", f"/volumes/{volume_id}")["volume"]
        return VolumeState(
            id=str(shown["id"]),
            status=str(shown["status"]),
            size=int(shown["size"]),
            encrypted=bool(shown.get("encrypted")),
        )


class Temporary:
    """Of one attempt of a task in one project. For one thread."""

    def __init__(self, cloud: LentLogin, task: str, claim: str) -> None:
        self._cloud = cloud
        self._task = task
        self._claim = claim

    @property
    def _marks(self) -> dict[str, str]:
        return {TASK: self._task, CLAIM: self._claim}

    # -- making -------------------------------------------------------------------------------------

    def snapshot(self, volume_id: str) -> str:
        """The id of a snapshot that is being made, also of a volume that is in use.

        Raises `CloudMissing`, `CloudRefused` (a quota), `CloudUnavailable`.
        """
        body = {"volume_id": volume_id, "name": _NAME, "force": True, "metadata": self._marks}
        with asking(_SERVICE):
            return str(_ask(self._cloud, "post", "/snapshots", {"snapshot": body})["snapshot"]["id"])

    def wait_for_snapshot(self, snapshot_id: str, check: Callable[[], None]) -> Snapshot:
        """Until it is there. Raises what `check` raises, `CloudRefused`, `CloudUnavailable`."""

        def look() -> Snapshot:
            found = find_snapshot(self._cloud, snapshot_id)
            if found is None or found.status.startswith("error"):
                status = found.status if found else "gone"
                raise CloudRefused(service=_SERVICE, detail=f"the snapshot {snapshot_id} is {status}, not made")
            return found

        return _until(look, lambda found: found.status == "available", check, _MAKE, f"snapshot {snapshot_id}")

    def volume(self, snapshot: Snapshot) -> str:
        """The id of a volume that is being filled from a snapshot. Raises `CloudRefused` (a quota), `CloudUnavailable`.

        It is of the snapshot's own type, and where that is.
        """
        body = {"size": snapshot.size, "snapshot_id": snapshot.id, "name": _NAME, "metadata": self._marks}
        with asking(_SERVICE):
            return str(_ask(self._cloud, "post", "/volumes", {"volume": body})["volume"]["id"])

    def wait_for_volume(self, volume_id: str, check: Callable[[], None]) -> None:
        """Until it is filled. Raises what `check` raises, `CloudRefused`, `CloudUnavailable`."""

        def look() -> str:
            status = _status(self._cloud, volume_id)
            if status is None or status.startswith("error"):
                raise CloudRefused(service=_SERVICE, detail=f"volume {volume_id} of a snapshot is {status or 'gone'}")
            return status

        _until(look, lambda status: status == "available", check, _FILL, f"volume {volume_id}")

    # -- removing -----------------------------------------------------------------------------------

    def clear(self) -> None:
        """What any attempt of the task has made. Raises `CloudRefused`, `CloudUnavailable`."""
        self._remove({TASK: self._task})

    def undo(self) -> None:
        """What this attempt has made. Raises `CloudRefused`, `CloudUnavailable`."""
        self._remove(self._marks)

    def _remove(self, marks: Mapping[str, str]) -> None:
        # volumes first: some backends keep them on top of their snapshots
        volumes = [each["id"] for each in _marked(self._cloud, "volumes", marks)]
        for volume in volumes:
            _release(self._cloud, volume)
            delete_volume(self._cloud, volume)
        for snapshot in marked_snapshots(self._cloud, marks):
            delete_snapshot(self._cloud, snapshot.id)

    def keep(self, snapshot_id: str, *, job: str, run: str, vm: str) -> None:
        """It is temporary no more: the next run of the job asks what has changed since.

        Raises `CloudMissing`, `CloudRefused`, `CloudUnavailable`.
        """
        marks = {JOB: job, RUN: run, VM: vm, CLAIM: self._claim}
        with asking(_SERVICE):
            _ask(self._cloud, "put", f"/snapshots/{snapshot_id}/metadata", {"metadata": marks})


def find_snapshot(cloud: LentLogin, snapshot_id: str) -> Snapshot | None:
    """None: it is not there. Raises `CloudRefused`, `CloudUnavailable`."""
    try:
        with asking(_SERVICE):
            return _snapshot(_ask(cloud, "get", f"/snapshots/{snapshot_id}")["snapshot"])
    except CloudMissing:
        return None


def marked_snapshots(cloud: LentLogin, marks: Mapping[str, str]) -> list[Snapshot]:
    """All that bear these marks. Raises `CloudRefused`, `CloudUnavailable`."""
    with asking(_SERVICE):
        return [_snapshot(each) for each in _marked(cloud, "snapshots", marks)]


def kept_snapshots(cloud: LentLogin, *, job: str, vm: str) -> list[Snapshot]:
    """Those that stayed of a job's runs, of one server or volume. Raises `CloudRefused`, `CloudUnavailable`."""
    return marked_snapshots(cloud, {JOB: job, VM: vm})


def delete_snapshot(cloud: LentLogin, snapshot_id: str) -> None:
    """Until it is gone; one that is not there is as good. Raises `CloudRefused`, `CloudUnavailable`."""

    def look() -> str | None:
        found = find_snapshot(cloud, snapshot_id)
        return None if found is None else found.status

    _delete(cloud, f"/snapshots/{snapshot_id}", look)


def delete_volume(cloud: LentLogin, volume_id: str) -> None:
    """Until it is gone; one that is not there is as good. Raises `CloudRefused`, `CloudUnavailable`."""
    _delete(cloud, f"/volumes/{volume_id}", lambda: _status(cloud, volume_id))


def _delete(cloud: LentLogin, path: str, look: Callable[[], str | None]) -> None:
    deadline = time.monotonic() + _GO
    asked = False
    for pause in _pauses():
        status = look()
        if status is None:
            return
        if time.monotonic() > deadline or (asked and status == "error_deleting"):
            raise CloudUnavailable(service=_SERVICE, detail=f"{path[1:]} does not go: it is {status}")
        # what is being made can be deleted once it is there
        if not asked and status not in _UNDER_WAY:
            with suppress(CloudMissing), asking(_SERVICE):
                _ask(cloud, "delete", path)
            asked = True
        time.sleep(pause)


def _release(cloud: LentLogin, volume_id: str) -> None:
    """Nobody has it attached any more: a host that died while it read from it does not mind."""
    with asking(_SERVICE):
        found = _ask(cloud, "get", f"/attachments?{urlencode({'volume_id': volume_id})}")["attachments"]
        attachments = [str(each["id"]) for each in found if each["volume_id"] == volume_id]
    for attachment in attachments:
        with suppress(CloudMissing), asking(_SERVICE):
            _ask(cloud, "delete", f"/attachments/{attachment}")


def _until(
    look: Callable[[], T], there: Callable[[T], bool], check: Callable[[], None], seconds: float, what: str
) -> T:
    deadline = time.monotonic() + seconds
    for pause in _pauses():
        found = look()
        if there(found):
            return found
        if time.monotonic() > deadline:
            raise CloudUnavailable(service=_SERVICE, detail=f"{what} is not there after {seconds:.0f} s")
        check()
        time.sleep(pause)
    raise AssertionError("pauses do not end")


def _pauses() -> Iterator[float]:
    yield from _POLLS
    while True:
        yield _POLL


def _marked(cloud: LentLogin, noun: str, marks: Mapping[str, str]) -> list[Mapping[str, Any]]:
    found: list[Mapping[str, Any]] = []
    query = {"metadata": str(dict(marks)), "limit": str(_PAGE)}
    with asking(_SERVICE):
        while True:
            answer = _ask(cloud, "get", f"/{noun}/detail?{urlencode(query)}")
            # a filter that an operator has not allowed is none
            found += [each for each in answer[noun] if marks.items() <= (each.get("metadata") or {}).items()]
            if not answer[noun] or not answer.get(f"{noun}_links"):
                return found
            query["marker"] = str(answer[noun][-1]["id"])


def _status(cloud: LentLogin, volume_id: str) -> str | None:
    try:
        return volume_state(cloud, volume_id).status
    except CloudMissing:
        return None


def _snapshot(shown: Mapping[str, Any]) -> Snapshot:
    return Snapshot(
        id=str(shown["id"]),
        volume_id=str(shown["volume_id"]),
        status=str(shown["status"]),
        size=int(shown["size"]),
        metadata={str(key): str(value) for key, value in (shown.get("metadata") or {}).items()},
    )


def _ask(cloud: LentLogin, verb: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
    """Not by cinderclient's own lists: they write names and ids into a file below the home, for completion."""
    client = cloud.volumes().client
    more = {} if body is None else {"body": body}
    return getattr(client, verb)(path, **more)[1]
