"""The disks that are measured: above all a 6 GiB raw file with an ext4 of about 1 GiB of files in it.

The files are a sample of the host's own programs, libraries and documents (hence of any Debian), and a part that no
compressor makes smaller. Which files are taken depends on their names alone, so the same host gives the same disk.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

MIB = 1024 * 1024
SIZE = 6 * 1024 * MIB
#: bytes taken from each directory at most
SAMPLES = {"/usr/lib": 420 * MIB, "/usr/share": 320 * MIB, "/usr/bin": 160 * MIB}
#: bytes that do not compress: what pictures, archives and databases of such look like
INCOMPRESSIBLE = 124 * MIB
_ONE_FILE = 4 * MIB
#: a file larger than this would be most of a sample
_LARGEST = 32 * MIB
_FIXED = "c7c64dde-6c9f-4a4c-b5d5-0d5d5ac4b8a1"


def make_image(path: Path, quick: bool = False) -> int:
    """Make the disk if it is not there; returns the bytes of data in it. `quick`: a sixteenth of that data."""
    part_of = 16 if quick else 1
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=path.parent) as directory:
            tree, part = Path(directory, "tree"), Path(directory, "part")
            for root, amount in SAMPLES.items():
                _sample(Path(root), tree / root.lstrip("/"), amount // part_of)
            _noise(tree / "var", INCOMPRESSIBLE // part_of)
            _file_system(tree, part)
            part.rename(path)
    return path.stat().st_blocks * 512


def make_noise(path: Path, size: int, amount: int) -> None:
    """A disk with pieces, all over it, that no compressor makes smaller."""
    source = random.Random(_FIXED)
    pieces = amount // _ONE_FILE
    with path.open("wb") as file:
        file.truncate(size)
        for number in range(pieces):
            file.seek(number * (size // pieces) // MIB * MIB)
            file.write(source.randbytes(_ONE_FILE))


def spread(image: Path, path: Path, size: int, amount: int) -> None:
    """The image at the start of a larger disk, and behind it pieces that do not compress."""
    make_noise(path, size, amount)
    subprocess.run(["dd", "status=none", "conv=notrunc,sparse", "bs=1M", f"if={image}", f"of={path}"], check=True)


def copy(image: Path, path: Path) -> Path:
    """With the same holes."""
    subprocess.run(["cp", "--sparse=always", image, path], check=True)
    return path


def _sample(root: Path, into: Path, amount: int) -> None:
    """Copy files in an order that depends on nothing but their names, until there is enough."""
    for name in sorted(_files(root), key=lambda name: hashlib.sha256(name.encode()).digest()):
        size = Path(name).stat().st_size
        if size > min(amount, _LARGEST):
            continue
        target = into / Path(name).relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(name, target)
        amount -= size
        if amount < _ONE_FILE:
            return


def _files(root: Path) -> Iterator[str]:
    for directory, _, names in os.walk(root):
        for path in (Path(directory, name) for name in names):
            if str(path).isprintable() and path.is_file() and not path.is_symlink() and os.access(path, os.R_OK):
                yield str(path)


def _noise(into: Path, amount: int) -> None:
    into.mkdir(parents=True)
    source = random.Random(_FIXED)
    for number in range(amount // _ONE_FILE):
        (into / f"{number:03}.bin").write_bytes(source.randbytes(_ONE_FILE))


def _file_system(tree: Path, path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(SIZE)
    command = ["mke2fs", "-q", "-F", "-t", "ext4", "-d", str(tree), "-U", _FIXED, "-E", f"hash_seed={_FIXED}"]
    subprocess.run([*command, str(path)], check=True)
