"""Which segments a task has stored, noted on its host until the task ends: its next claim need not send them again.

An agent that was killed leaves segments under the name of a claim that nobody goes on with. They are no garbage until
the task has ended, so the next claim of it may name them in its maps. One file for each VM, as a VM has one task at a
time: whole records only, each with a checksum under the id of its task.

Promises: a record is answered as it was noted, and only to the task that noted it; what follows a torn one is cut off;
no file grows beyond `LIMIT`. A host that cannot write it notes no more: the backup goes on.
Not promised: that all is noted, or is in the vault. Whoever uses it asks the vault (`raksha.vault.dedupe`).
"""

from __future__ import annotations

import hashlib
import logging
import os
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType

import msgspec

from raksha.vault.names import checked
from raksha.vault.segment import SegmentRow

_log = logging.getLogger(__name__)

#: bytes; notes of some 1.5 TiB that cannot be compressed
LIMIT = 128 * 1024 * 1024
_HEAD = struct.Struct(">I16s")
#: no row is longer
_LONGEST = 64 * 1024
_DECODER = msgspec.msgpack.Decoder(SegmentRow)


class StoredNotes:
    """Of one task that has its VM for itself. A context manager; `rows` comes before `add`, which any thread may call.

    Raises `OSError` where the file cannot be opened or read.
    """

    def __init__(self, state_dir: Path, vm: str, task_id: str) -> None:
        path = _path(state_dir, vm)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._key = task_id.encode()
        self._fd: int | None = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._lock = threading.Lock()
        self._size = 0

    def __enter__(self) -> StoredNotes:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with self._lock:
            self._close()

    def rows(self) -> Iterator[SegmentRow]:
        """What earlier claims of the task noted. Read to the end, it leaves the file as it answered it."""
        assert self._fd is not None
        good = 0
        with os.fdopen(os.dup(self._fd), "rb") as file:
            file.seek(0)
            while (found := self._next(file.read)) is not None:
                row, length = found
                good += length
                yield row
        os.ftruncate(self._fd, good)
        self._size = good

    def _next(self, read: Callable[[int], bytes]) -> tuple[SegmentRow, int] | None:
        head = read(_HEAD.size)
        if len(head) < _HEAD.size:
            return None
        length, checksum = _HEAD.unpack(head)
        body = read(length) if length <= _LONGEST else b""
        if len(body) < length or self._checksum(body) != checksum:
            return None
        try:
            return _DECODER.decode(body), _HEAD.size + length
        except msgspec.DecodeError:  # another version of Raksha wrote it
            return None

    def add(self, row: SegmentRow) -> None:
        """It is in the vault now. Not synced: after a power cut some are sent again."""
        body = msgspec.msgpack.encode(row)
        record = _HEAD.pack(len(body), self._checksum(body)) + body
        with self._lock:
            if self._fd is None or self._size + len(record) > LIMIT:
                return
            try:
                written = os.write(self._fd, record)
            except OSError as error:
                written = 0
                _log.warning("what is stored is noted no more: %s", error)
            if written < len(record):  # nothing may follow what is torn
                self._close()
            self._size += written

    def _checksum(self, body: bytes) -> bytes:
        return hashlib.blake2b(body, digest_size=16, key=self._key[:64]).digest()

    def _close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def forget(state_dir: Path, vm: str) -> None:
    """Its task has ended. Raises `OSError`."""
    _path(state_dir, vm).unlink(missing_ok=True)


def _path(state_dir: Path, vm: str) -> Path:
    return state_dir / "stored" / checked(vm, "a VM")
