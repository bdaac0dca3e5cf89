"""What no backup can be faster than: zstd level 1 of a disk's data, in clusters, on all cores, into nothing.

usage: python -m benchmarks.ceiling DISK
"""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import local

import zstandard

from benchmarks.measuring import data_parts

CLUSTER = 64 * 1024
PIECE = 64 * CLUSTER


def main() -> None:
    path = Path(sys.argv[1])
    own = local()
    with path.open("rb") as file:

        def work(at: int, length: int) -> int:
            if not hasattr(own, "zstd"):
                own.zstd = zstandard.ZstdCompressor(level=1)
            data = os.pread(file.fileno(), length, at)
            view = memoryview(data)
            return sum(len(own.zstd.compress(view[i : i + CLUSTER])) for i in range(0, len(data), CLUSTER))

        pieces = [(at, min(PIECE, end - at)) for start, end in data_parts(path) for at in range(start, end, PIECE)]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            print(sum(pool.map(lambda piece: work(*piece), pieces)))


if __name__ == "__main__":
    main()
