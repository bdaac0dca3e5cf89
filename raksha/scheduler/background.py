"""Work on vaults, beside the loop: a slow vault holds up neither the clock nor the answers to agents.

Each piece of work has a key, and of a key there is one at a time in this process. What is handed over is nothing but a
hint: what is to be done stands in the database, and is found again by the next round.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from raksha.errors import RakshaError

_log = logging.getLogger(__name__)

Work = Callable[[], object]


class Background:
    """A few threads. `close` waits for what is under way, and drops what has not begun."""

    def __init__(self, workers: int) -> None:
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="scheduler-vault")
        self._busy: set[str] = set()
        self._lock = threading.Lock()

    def submit(self, key: str, work: Work) -> bool:
        """False: work of this key is under way."""
        with self._lock:
            if key in self._busy:
                return False
            self._busy.add(key)
        self._pool.submit(self._do, key, work)
        return True

    def _do(self, key: str, work: Work) -> None:
        try:
            work()
        except RakshaError as error:  # the database is away, say: known, and the next round tries again
            _log.error("%s: %s", key, error, extra={"action": key.partition(" ")[0]})
        except Exception:  # what nobody thought of must not end the others; the next round tries again
            _log.exception("%s failed", key, extra={"action": key.partition(" ")[0]})
        finally:
            with self._lock:
                self._busy.discard(key)

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
