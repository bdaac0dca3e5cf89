"""What a place must be able to do to hold a vault: the narrow protocol that every store fulfils.

A name is `container/key`. Stores know nothing of segments, maps or runs. Every call may be made from any
thread: a store that needs a connection per thread keeps them itself.

Guarantees asked of every store (tests/contract/test_store.py):

- `put` returns only when the bytes are durable, and the object is never visible half-written.
- `create_only` never overwrites. On Swift this is a hint checked per object server, not a lock.
- `get` returns exactly the bytes asked for, or raises `ObjectMissing` / `ObjectTruncated`.
- `names` may lag behind (Swift): nothing may be decided on the absence of a name from a listing.
- A call may be repeated after any error without harm.

Not guaranteed: ordering between calls from several processes; that a flipped byte is noticed (readers verify).
No object may stand where another name has a folder (`a` beside `a/b`): a directory cannot hold both.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import BinaryIO, Protocol

from msgspec import Struct

from raksha.errors import BadName
from raksha.types import Buffer

#: container of everything a person would look for
BACKUPS = "backupjobs"
#: container of the segments and image tables
SEGMENTS = "backupjobs_segments"
CONTAINERS = (BACKUPS, SEGMENTS)

#: most bytes of an object that is read whole: a segment has up to 64 MiB of clusters and what zstd may add. Whoever may
#: write to the place can put objects of any size under our names
WHOLE_LIMIT = 72 << 20


class ObjectInfo(Struct, frozen=True):
    """What `head` tells of an object."""

    #: bytes; for a manifest the size of what it assembles to
    size: int
    manifest: bool = False


class Part(Struct, frozen=True):
    """One part of a manifest: a whole object, or another manifest."""

    #: `container/key`
    name: str
    #: bytes
    size: int
    #: the part is itself a manifest
    manifest: bool = False


class Store(Protocol):
    """A place for a vault.

    Raises `VaultError` and `Damaged` errors, `BadName` for a name that no vault has, `VaultNotFound` when writing
    where nothing was prepared, `VaultForeign` where something stands at our names that we did not put there.
    """

    #: the address as given, without secrets
    url: str

    def prepare(self) -> None:
        """Make the containers if they are missing. Idempotent. Only a writer calls it."""

    def put(self, name: str, data: Buffer, *, create_only: bool = False) -> None:
        """Store a small object. Raises `ObjectExists` when `create_only` finds one.

        The bytes are the caller's again when this returns: a store that keeps them makes a copy.
        """

    def put_file(self, name: str, source: BinaryIO, size: int) -> None:
        """Store `size` bytes from the position of a seekable file, without holding them in memory."""

    def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        """Bytes `[offset, offset + length)`, or everything from `offset`. A manifest reads as what it assembles to.

        Raises `ObjectCorrupt` for more than `WHOLE_LIMIT` bytes where no length is given: nothing of ours is so large.
        """

    def head(self, name: str) -> ObjectInfo:
        """Raises `ObjectMissing`."""

    def delete(self, name: str) -> None:
        """Remove one object. A missing one is no error. Parts of a manifest stay."""

    def names(self, container: str, prefix: str = "") -> Iterator[str]:
        """Names (`container/key`) under a prefix, in order of their bytes. May lag."""

    def put_manifest(self, name: str, parts: Sequence[Part]) -> None:
        """Make `name` the concatenation of the parts. At most `manifest_limit` parts a call.

        Raises `ObjectMissing` when a part does not exist, `ObjectTruncated` when one has another size.
        """

    def parts(self, name: str) -> list[Part]:
        """The parts a manifest was made of. Raises `ObjectMissing`, `ObjectCorrupt` if it is none."""

    #: parts that one manifest may have (Swift: 1000)
    manifest_limit: int

    def close(self) -> None: ...


def split_name(name: str) -> tuple[str, str]:
    """Container and key of an object name. Raises `BadName`.

    The rules are those of the strictest store, for all of them: a name that one takes, all take, and none of its
    steps can leave a directory or meet a temporary file.
    """
    container, slash, key = name.partition("/")
    if container not in CONTAINERS or not slash:
        raise BadName(name=name, noun="an object", detail=f"it does not begin with one of {', '.join(CONTAINERS)}")
    if not key.isprintable() or len(key.encode()) > 1024:
        raise BadName(name=name, noun="an object", detail="it has unprintable characters or over 1024 bytes")
    if any(not step or step.startswith(".") or len(step.encode()) > 255 for step in key.split("/")):
        raise BadName(name=name, noun="an object", detail="a step is empty, begins with a dot or has over 255 bytes")
    return container, key


def check_range(offset: int, length: int | None) -> None:
    """Raises `ValueError` for a range that no object can have."""
    if offset < 0 or (length is not None and length < 0):
        raise ValueError(f"no range: {offset}, {length}")


def assemble(store: Store, parts: Iterable[Part]) -> Iterator[bytes]:
    """The bytes of a part list, nested manifests resolved, one whole part at a time."""
    for part in parts:
        if part.manifest:
            yield from assemble(store, store.parts(part.name))
        else:
            yield store.get(part.name, 0, part.size)
