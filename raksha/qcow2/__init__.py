"""qcow2 version 3, written from nothing: tables for a list of clusters. Pure code, no I/O.

    header.py      the first cluster: header, extensions, name of the backing file
    layout.py      where everything stands: header | L1 | L2 tables | refcount table | refcount blocks | data
    tables.py      entries of L1 and L2 tables, big-endian tables
    refcounts.py   counting references to host clusters in bounded memory
    compressed.py  images of zstd frames packed at byte granularity: the `Backup` of the vault
    plain.py       images of whole clusters, each with a known place: what a restore writes

Promised: what is made here passes `qemu-img check` without error and without leak, and holds nothing in memory that
grows with the data, but for 8 bytes a segment.

Not promised: reading. An image header that comes from a vault or a guest is never parsed by Raksha.
"""

#: what a map says of a cluster; the same numbers as in `raksha.types.ExtentKind`
ABSENT = 0
DATA = 1
ZERO = 2
