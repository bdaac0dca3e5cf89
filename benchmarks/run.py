"""Measure Raksha against its peers and write docs/benchmarks.md, with pictures.

usage: python -m benchmarks.run [--only SECTION,...] [--rounds N] [--dir DIR] [--quick] [--no-write]

Each section can be run alone: its figures replace those of the last time in docs/benchmarks.json, which the page is
written from. A contender or section that fails is told on the page, and the others go on. `--quick` takes small disks
and writes nothing: does everything work? A whole run takes a quarter of an hour on two cores, and 15 GiB in DIR.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from pathlib import Path

import libvirt

from benchmarks import report
from benchmarks.measuring import Figures, Place
from benchmarks.sections import ALL


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="SECTION,...", default=",".join(ALL), help=f"of: {', '.join(ALL)}")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--dir", type=Path, help="make the working directory there")
    parser.add_argument("--quick", action="store_true", help="small disks, to see that everything works")
    parser.add_argument("--no-write", action="store_true", help="print the page instead of writing it")
    options = parser.parse_args()
    names = options.only.split(",")
    if unknown := set(names) - set(ALL):
        parser.error(f"no such section: {', '.join(sorted(unknown))}")
    # what libvirt says is in its exceptions
    libvirt.registerErrorHandler(lambda *_: None, None)
    # whoever ends us lets us clear up
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    found = report.read()
    with tempfile.TemporaryDirectory(prefix="raksha-bench-", dir=options.dir) as made:
        # a VM of another user is to reach its disk
        Path(made).chmod(0o755)
        place = Place(Path(made), options.rounds, options.quick)
        for name in names:
            found[name] = section(name, place)
            if not (options.quick or options.no_write):
                report.write(found)
    print(report.page(found) if options.no_write or options.quick else report.verdict(found))
    return 0


def section(name: str, place: Place) -> report.Found:
    """Measure one; never raises but for an interrupt."""
    print(name, file=sys.stderr, flush=True)
    figures, began = Figures(), time.time()
    try:
        ALL[name].measure(place, figures)
    except Exception as error:
        said = getattr(error, "stderr", None) or str(error) or type(error).__name__
        figures.failed[name] = " ".join(str(said).split())[-300:]
        print(f"  {name} failed: {error!r}", file=sys.stderr, flush=True)
    took = time.time() - began
    print(f"  {name} took {took:.0f} s", file=sys.stderr, flush=True)
    return {
        "rounds": place.rounds, "at": time.strftime("%Y-%m-%d %H:%M", time.gmtime(began)), "took": round(took),
        "figures": {key: [round(value, 4) for value in values] for key, values in figures.taken.items()},
        "failed": dict(figures.failed),
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
