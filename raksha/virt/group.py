"""Several VMs at one instant: freeze all, snapshot all, thaw all, as one barrier.

::

    captures = freeze_together(prepared, deadline)      # or an error, and then nothing of ours is left half-done

Each VM has a thread of its own. All file systems are frozen before the first snapshot, all snapshots are taken
before the first thaw. When one member fails, all are thawed at once; those without a snapshot are cancelled, those
with one keep their new layer for the next run (`abandon`), and the first error is raised.

Not promised: that disks of different VMs stop at one write. How far apart they are is measured and returned.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait

from msgspec import Struct

from raksha.errors import CaptureFailed
from raksha.virt.capture import Capture, Prepared


class Group(Struct, frozen=True):
    """Captures of one barrier, in the order of the VMs given."""

    captures: tuple[Capture, ...]
    #: seconds between the first and the last snapshot
    skew_seconds: float
    #: seconds from the first freeze to the last thaw
    window_seconds: float


def freeze_together(prepared: Sequence[Prepared], deadline: float) -> Group:
    """Capture all VMs together. `deadline`: seconds from the first freeze within which all snapshots must be taken.

    Raises the first member's error, or `CaptureFailed` when the deadline passes.
    """
    if not prepared:
        raise ValueError("a group has at least one VM")
    started = time.monotonic()
    with ThreadPoolExecutor(max_workers=len(prepared), thread_name_prefix="raksha-barrier") as pool:
        try:
            _all(pool, prepared, lambda each: each.freeze())
            if time.monotonic() - started > deadline:
                detail = f"freezing its group took longer than {deadline:g} s"
                raise CaptureFailed(vm=prepared[0].vm_name, detail=detail)
            _all(pool, prepared, lambda each: each.snapshot())
            _all(pool, prepared, lambda each: each.thaw())
        except BaseException:
            # Thaw everybody first: what follows may take its time.
            wait([pool.submit(each.thaw) for each in prepared])
            wait([pool.submit(each.cancel) for each in prepared])
            raise
    window = time.monotonic() - started
    captures = _captures(prepared)
    taken = [capture.taken_at for capture in captures]
    return Group(tuple(captures), max(taken) - min(taken), window)


def _all(pool: ThreadPoolExecutor, prepared: Sequence[Prepared], step: Callable[[Prepared], None]) -> None:
    """Run a step for all members at once; raise the first error, but only after all have ended."""
    futures: list[Future[None]] = [pool.submit(step, each) for each in prepared]
    wait(futures)
    for future in futures:
        future.result()


def _captures(prepared: Sequence[Prepared]) -> list[Capture]:
    captures: list[Capture] = []
    try:
        for each in prepared:
            captures.append(each.capture())  # noqa: PERF401 -- those made so far must be known after an error
    except BaseException:
        for capture in captures:
            capture.abandon()
        for rest in prepared[len(captures) :]:
            rest.cancel()
        raise
    return captures
