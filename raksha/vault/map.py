"""The map of a stored disk copy: which cluster is in which segment. Byte tables in docs/vault-format.md.

A map is one file, `BackupMap-<digest>`: pages of entries and pages of the segment table in the order in which they
filled, a summary of all segments, the root, and a trailer that tells where the root begins. The digest is that of the
root, which holds the digests of everything else. `map_writer` makes it, `map_reader` reads it, both page by page.
"""

from raksha.vault.map_page import ABSENT, DATA, ZERO, MapEntry, MapPage
from raksha.vault.map_reader import FileSource, MapReader, Source, StoreSource
from raksha.vault.map_writer import BuiltMap, MapBuilder

__all__ = [
    "ABSENT",
    "DATA",
    "ZERO",
    "BuiltMap",
    "FileSource",
    "MapBuilder",
    "MapEntry",
    "MapPage",
    "MapReader",
    "Source",
    "StoreSource",
]
