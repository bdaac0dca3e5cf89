"""Small frozen records that cross layers. No behaviour beyond what follows from the fields."""

from __future__ import annotations

from enum import IntEnum

from msgspec import Struct

Buffer = bytes | bytearray | memoryview

#: bytes; the default cluster of a map (a field of the map, never assumed from here when reading)
CLUSTER_SIZE = 65536
#: the default number of clusters in one segment: 4 MiB of plain data
CLUSTERS_PER_SEGMENT = 64


class ExtentKind(IntEnum):
    DATA = 1
    #: reads as zeroes; in a delta it must be stored as such, or old data would come back
    ZERO = 2


class Extent(Struct, frozen=True):
    """A stretch of a disk. What no extent names is unchanged (delta) or zero (full, compare)."""

    #: bytes from the start of the disk
    start: int
    #: bytes
    length: int
    kind: ExtentKind

    @property
    def end(self) -> int:
        return self.start + self.length


class Geometry(Struct, frozen=True):
    """Size of a disk and the grid it is cut into."""

    #: bytes, any number
    size: int
    #: bytes, a power of two
    cluster_size: int = CLUSTER_SIZE
    clusters_per_segment: int = CLUSTERS_PER_SEGMENT

    @property
    def clusters(self) -> int:
        """Number of clusters, the last one possibly short (it is zero-padded before hashing)."""
        return -(-self.size // self.cluster_size)

    @property
    def page_clusters(self) -> int:
        """Clusters in one page of a map, which is also one L2 table of the qcow2 image."""
        return self.cluster_size // 8

    @property
    def pages(self) -> int:
        return -(-self.clusters // self.page_clusters)


class ResourceKey(Struct, frozen=True, order=True):
    """Names one stored disk copy in a vault."""

    backupjob: str
    backupjobrun: str
    vm: str
    resource: str
