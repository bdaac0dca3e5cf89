"""The tables of docs/benchmarks.md, one module each: `TITLE`, `ABOUT`, `GOALS`, and `measure`, which takes the figures.

A section makes its own disks and VMs in the place it is given, and leaves nothing behind.
"""

from types import ModuleType

from benchmarks.sections import chains, clones, directory, guest, increments, kinds, memory, swift

#: in the order of the page
ALL: dict[str, ModuleType] = {
    "directory": directory,
    "kinds": kinds,
    "swift": swift,
    "increments": increments,
    "clones": clones,
    "chains": chains,
    "memory": memory,
    "guest": guest,
}
