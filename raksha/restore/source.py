"""One stored disk, ready to be read: its maps, the keys of their hashes, and the store.

Plain things only: who makes a `DiskSource` (the catalog of a vault, later a task of a scheduler) is of no
concern to a restore.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from msgspec import Struct

from raksha.types import Geometry
from raksha.vault.chain import Chain, ChainPage
from raksha.vault.map import MapReader
from raksha.vault.segment import ClusterHasher
from raksha.vault.store import Store


class DiskSource(Struct, frozen=True):
    """A disk at one restore point."""

    #: as a person knows them; they end up in errors
    vm: str
    disk: str
    #: id of the restore point
    run: str
    store: Store
    #: the chain's maps, oldest first
    readers: Sequence[MapReader]
    #: for each reader, the hasher with the key its map names
    hashers: Sequence[ClusterHasher]

    def pages(self) -> Pages:
        """The merged view of all maps."""
        return Chain(self.readers)

    @property
    def geometry(self) -> Geometry:
        return self.readers[-1].geometry


class Pages(Protocol):
    """What is to be restored, page by page: a chain of maps, or a view that leaves some of it out."""

    @property
    def geometry(self) -> Geometry: ...

    def page_numbers(self) -> Sequence[int]:
        """Pages that may hold anything, ascending. The others are absent throughout."""

    def page(self, number: int) -> ChainPage:
        """Columns of equal length; an absent page is one of ABSENT entries only."""
