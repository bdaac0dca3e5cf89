"""What every restore, export and verification is given besides its subject."""

from __future__ import annotations

import threading
from pathlib import Path

from msgspec import Struct, field

from raksha.errors import Interrupted
from raksha.progress import Progress


class Context(Struct, frozen=True):
    """How to work."""

    #: directory of temporary files without names: some 30 bytes for each cluster of a disk
    spool_dir: Path
    #: threads that fetch, verify and write
    workers: int = 4
    progress: Progress = field(default_factory=Progress)
    #: set by whoever wants the work to end
    cancel: threading.Event = field(default_factory=threading.Event)

    def check(self) -> None:
        """Raises `Interrupted` if the work is to end."""
        if self.cancel.is_set():
            raise Interrupted
