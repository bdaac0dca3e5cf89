"""A plain parallel upload to Swift of all files below a folder: no digests, no order, nothing else.

usage: python -m benchmarks.upload FOLDER CONTAINER      ST_AUTH, ST_USER and ST_KEY tell where
"""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import local

from swiftclient.client import Connection

THREADS = 8


def main() -> None:
    folder, container = Path(sys.argv[1]), sys.argv[2]
    own = local()

    def connection() -> Connection:
        if not hasattr(own, "connection"):
            own.connection = Connection(os.environ["ST_AUTH"], os.environ["ST_USER"], os.environ["ST_KEY"])
        return own.connection

    def send(path: Path) -> None:
        with path.open("rb") as file:
            size = path.stat().st_size
            connection().put_object(container, str(path.relative_to(folder)), file, content_length=size)

    connection().put_container(container)
    files = [path for path in folder.rglob("*") if path.is_file()]
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(send, files))


if __name__ == "__main__":
    main()
