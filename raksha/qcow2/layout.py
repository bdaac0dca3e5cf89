"""Where everything stands in an image file.

::

    header | L1 table | L2 tables | refcount table | refcount blocks | data
    1        ≥ 1        any         ≥ 1              ≥ 1               any    clusters

Every part starts at a cluster; the data may end at any byte. L2 tables stand in the order of their pages, refcount
blocks cover the whole file without gap.
"""

from __future__ import annotations

from msgspec import Struct

from raksha.types import Geometry

#: bytes; QEMU refuses larger tables
_L1_MAX = 32 * 1024 * 1024
_REFCOUNT_TABLE_MAX = 8 * 1024 * 1024
#: bytes; the sizes of images, and of compressed clusters, count in these
SECTOR = 512
_ENTRY = 8


class Layout(Struct, frozen=True):
    """Offsets and counts of one image; see `plan`."""

    cluster_bits: int
    #: bytes: the size of the disk, rounded up to a sector; the tail reads as zero
    virtual_size: int
    l1_entries: int
    l1_clusters: int
    l2_tables: int
    #: log2 of the width of a refcount in bits
    refcount_order: int
    refcount_table_clusters: int
    refcount_blocks: int
    #: bytes from the start of the data to the end of the file
    data_size: int

    @property
    def cluster_size(self) -> int:
        return 1 << self.cluster_bits

    @property
    def l1_offset(self) -> int:
        return self.cluster_size

    @property
    def l2_offset(self) -> int:
        return (1 + self.l1_clusters) << self.cluster_bits

    @property
    def refcount_table_offset(self) -> int:
        return self.l2_offset + (self.l2_tables << self.cluster_bits)

    @property
    def refcount_blocks_offset(self) -> int:
        return self.refcount_table_offset + (self.refcount_table_clusters << self.cluster_bits)

    @property
    def data_offset(self) -> int:
        """Also the bytes that all tables take together."""
        return self.refcount_blocks_offset + (self.refcount_blocks << self.cluster_bits)

    @property
    def file_size(self) -> int:
        return self.data_offset + self.data_size

    @property
    def host_clusters(self) -> int:
        """Clusters of the file, the last one possibly short."""
        return -(-self.file_size >> self.cluster_bits)

    @property
    def refcounts_per_block(self) -> int:
        return _per_block(self.cluster_size, self.refcount_order)


def plan(geometry: Geometry, l2_tables: int, data_size: int, refcount_order: int = 4) -> Layout:
    """The layout of an image with so many L2 tables and so many bytes of data.

    Raises `ValueError` for a geometry that qcow2 cannot express: clusters not between 4 KiB and 2 MiB, or so small
    for the disk that a table gets larger than QEMU reads.
    """
    size = geometry.cluster_size
    bits = size.bit_length() - 1
    if not 12 <= bits <= 21 or size != 1 << bits:
        raise ValueError(f"qcow2 clusters are a power of two between 4 KiB and 2 MiB, not {size} bytes")
    # a disk of no size gets one entry too, so that the table has a place
    l1_entries = max(1, geometry.pages)
    l1_clusters = -(-l1_entries * _ENTRY // size)
    if l1_entries * _ENTRY > _L1_MAX:
        raise ValueError(f"a disk of {geometry.size} bytes is too large for clusters of {size} bytes")
    others = 1 + l1_clusters + l2_tables + -(-data_size // size)
    table, blocks = _refcount_clusters(others, size, refcount_order)
    if table * size > _REFCOUNT_TABLE_MAX:
        raise ValueError(f"an image of {others} clusters is too large for clusters of {size} bytes")
    return Layout(
        cluster_bits=bits,
        virtual_size=-(-geometry.size // SECTOR) * SECTOR,
        l1_entries=l1_entries,
        l1_clusters=l1_clusters,
        l2_tables=l2_tables,
        refcount_order=refcount_order,
        refcount_table_clusters=table,
        refcount_blocks=blocks,
        data_size=data_size,
    )


def _per_block(cluster_size: int, refcount_order: int) -> int:
    return cluster_size * 8 >> refcount_order


def _refcount_clusters(others: int, cluster_size: int, refcount_order: int) -> tuple[int, int]:
    """Clusters of the refcount table and of its blocks, which count themselves too. The least that fits."""
    per_block = _per_block(cluster_size, refcount_order)
    table, blocks = 1, 1
    while True:
        wanted_blocks = -(-(others + table + blocks) // per_block)
        wanted_table = -(-wanted_blocks * _ENTRY // cluster_size)
        if (wanted_table, wanted_blocks) == (table, blocks):
            return table, blocks
        table, blocks = wanted_table, wanted_blocks
