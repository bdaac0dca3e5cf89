"""A vault in a directory: each object a file of the same name, each manifest a part list in JSON.

An object is written beside its place under a temporary name, synced, and then linked or renamed into place; the
directory is synced after that. So a name holds all of an object or nothing, whenever the power goes.

Nothing below the root is reached through a symbolic link: names are checked, and every step is opened from the
directory above it with O_NOFOLLOW. The root itself may be one, it is the user's own word.

Not promised: that a file system without hard links (FAT) can hold a vault; that a byte which the medium changed is
noticed here.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NoReturn

from raksha import crash, direct
from raksha.errors import (
    BadName,
    BadVaultUrl,
    ObjectCorrupt,
    ObjectExists,
    ObjectMissing,
    ObjectTruncated,
    VaultAccessDenied,
    VaultForeign,
    VaultFull,
    VaultNotFound,
    VaultUnavailable,
)
from raksha.types import Buffer
from raksha.vault import partlist
from raksha.vault.store import CONTAINERS, SEGMENTS, ObjectInfo, Part, check_range, split_name

#: no object name has a step that begins with a dot
_TEMPORARY = ".raksha-"
#: seconds after which a temporary file, or a folder with nothing in it, has no writer any more
_STALE = 24 * 3600
_CHUNK = 1 << 20
_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
#: without O_NONBLOCK a planted pipe would hold the reader for ever
_OPEN_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.EOPNOTSUPP}
#: a step of the way is a file where a directory should be, a directory where a file should be, or a symbolic link
_FOREIGN = {errno.ENOTDIR, errno.EISDIR, errno.ELOOP}


class DirectoryStore:
    """Fulfils `Store` on a local or mounted file system."""

    def __init__(self, url: str, root: Path, *, manifest_limit: int = 1000) -> None:
        """`root` is absolute. Nothing is read or made until the first call."""
        self.url = url
        self.manifest_limit = manifest_limit
        self._root = root
        self._prepared = False
        #: directories whose own entry is known to be durable, by path from the root
        self._durable: set[str] = set()
        self._making = threading.Lock()

    # -- the protocol ---------------------------------------------------------------------------

    def prepare(self) -> None:
        """Also makes the root, if the directory above it exists, and refuses one that holds other things."""
        with self._translated():
            if not self._root.parent.is_dir():
                raise BadVaultUrl(url=self.url, detail=f"there is no directory {self._root.parent}")
            with contextlib.suppress(FileExistsError):
                self._root.mkdir(mode=0o700)
                _sync_directory(self._root.parent)
            self._refuse_foreign()
            with self._opened_root() as root:
                for container in CONTAINERS:
                    self._make(root, container, container)
        self._prepared = True

    def put(self, name: str, data: Buffer, *, create_only: bool = False) -> None:
        if bytes(data[: len(partlist.MAGIC)]) == partlist.MAGIC:
            raise BadName(name=name, noun="a plain object", detail="its data would be taken for a part list")
        self._write(name, data, create_only)

    def put_file(self, name: str, source: BinaryIO, size: int) -> None:
        with self._translated(), self._folder(name) as (folder, leaf), _Temporary(folder) as temporary:
            done = 0
            while done < size and (chunk := source.read(min(_CHUNK, size - done))):
                if not done and chunk.startswith(partlist.MAGIC):
                    raise BadName(name=name, noun="a plain object", detail="its data would be taken for a part list")
                temporary.write(chunk)
                done += len(chunk)
            if done != size:
                raise ObjectTruncated(name=name, wanted=size, got=done)
            temporary.publish(leaf, create_only=False)

    def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        check_range(offset, length)
        with self._translated():
            return self._read(name, offset, length, 0, None)

    def head(self, name: str) -> ObjectInfo:
        with self._translated(), self._file(name) as (fd, size):
            found = _part_list(name, fd, size)
        return ObjectInfo(size) if found is None else ObjectInfo(partlist.total(found), manifest=True)

    def delete(self, name: str) -> None:
        """Folders that become empty go too: a pruned run leaves no trace."""
        gone = contextlib.suppress(ObjectMissing, FileNotFoundError)
        with self._translated(), gone, self._existing(name) as (folders, leaf):
            with crash.around("directory.unlink"):
                os.unlink(leaf, dir_fd=folders[-1])
            if not name.startswith(f"{SEGMENTS}/"):
                # a run must not come back after a power cut when its segments are gone; a segment may: it is garbage
                os.fsync(folders[-1])
            self._remove_empty(folders, name)

    def names(self, container: str, prefix: str = "") -> Iterator[str]:
        """What is not ours (links, pipes, names that no vault has) is left out."""
        if container not in CONTAINERS:
            raise ValueError(f"no container of a vault: {container}")
        with self._translated(), self._opened_root() as root:
            yield from self._walk(root, container, f"{container}/", f"{container}/{prefix}")

    def put_manifest(self, name: str, parts: Sequence[Part]) -> None:
        partlist.check(parts, self.manifest_limit)
        for part in parts:
            partlist.same_size(part, self.head(part.name).size)
        self._write(name, partlist.to_json(parts), False)

    def parts(self, name: str) -> list[Part]:
        with self._translated(), self._file(name) as (fd, size):
            found = _part_list(name, fd, size)
        if found is None:
            raise ObjectCorrupt(name=name, detail="it is no manifest")
        return found

    def close(self) -> None:
        """Nothing is kept open between calls."""

    # -- reading --------------------------------------------------------------------------------

    def _read(self, name: str, offset: int, length: int | None, depth: int, part: Part | None) -> bytes:
        if depth > partlist.MAX_DEPTH:
            raise ObjectCorrupt(name=name, detail="its manifests are nested too deep")
        with self._file(name) as (fd, size):
            found = _part_list(name, fd, size)
            whole = size if found is None else partlist.total(found)
            if part is not None:
                partlist.same_size(part, whole)
            length = partlist.clip(name, whole, offset, length)
            if found is None:
                return _read_exactly(name, fd, offset, length)
        pieces = partlist.slices(found, offset, length)
        return b"".join(self._read(each.name, start, count, depth + 1, each) for each, start, count in pieces)

    @contextlib.contextmanager
    def _file(self, name: str) -> Iterator[tuple[int, int]]:
        """The open file of an object, and its size in bytes."""
        with self._existing(name) as (folders, leaf):
            try:
                fd = os.open(leaf, _OPEN_FILE, dir_fd=folders[-1])
            except FileNotFoundError:
                raise ObjectMissing(name=name) from None
        try:
            found = os.fstat(fd)
            if stat.S_ISDIR(found.st_mode):
                raise ObjectMissing(name=name)
            if not stat.S_ISREG(found.st_mode):
                raise VaultForeign(url=self.url, detail=f"{name} is not a regular file")
            yield fd, found.st_size
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def _existing(self, name: str) -> Iterator[tuple[list[int], str]]:
        """The way to an object, open, from the root to its folder, and its file name. Raises `ObjectMissing`."""
        split_name(name)
        *steps, leaf = name.split("/")
        with contextlib.ExitStack() as stack:
            folders = [stack.enter_context(self._opened_root())]
            for step in steps:
                try:
                    folders.append(stack.enter_context(_opened(step, folders[-1])))
                except FileNotFoundError:
                    raise ObjectMissing(name=name) from None
            yield folders, leaf

    def _walk(self, above: int, step: str, path: str, start: str) -> Iterator[str]:
        """Names below `path` (which ends with a slash) that begin with `start`, in order of their bytes."""
        try:
            folder = os.open(step, _OPEN_DIRECTORY, dir_fd=above)
        except FileNotFoundError:
            return
        try:
            untouched = time.time() - os.fstat(folder).st_mtime
            with os.scandir(folder) as entries:
                # a folder sorts by its name and the slash that follows it
                found = [
                    (
                        f"{each.name}/" if each.is_dir(follow_symlinks=False) else each.name,
                        each.is_file(follow_symlinks=False),
                    )
                    for each in entries
                ]
            for entry, is_file in sorted(found, key=lambda each: os.fsencode(each[0])):
                full = path + entry
                if entry.startswith(_TEMPORARY) and is_file and self._prepared:
                    _remove_stale(folder, entry)
                elif not _acceptable(full.rstrip("/")):
                    continue
                elif is_file and full.startswith(start):
                    yield full
                elif full.endswith("/") and (full.startswith(start) or start.startswith(full)):
                    yield from self._walk(folder, entry[:-1], full, start)
            if self._prepared and untouched > _STALE and path.count("/") > 1 and not path.startswith(f"{SEGMENTS}/"):
                # left by a writer that was killed before its object had a name; one with objects in it stays
                with self._making, contextlib.suppress(OSError):
                    os.rmdir(step, dir_fd=above)
                    self._durable.discard(path.rstrip("/"))
        finally:
            os.close(folder)

    # -- writing --------------------------------------------------------------------------------

    def _write(self, name: str, data: Buffer, create_only: bool) -> None:
        with self._translated(), self._folder(name) as (folder, leaf), _Temporary(folder) as temporary:
            temporary.write_all(data)
            try:
                temporary.publish(leaf, create_only)
            except FileExistsError:
                raise ObjectExists(name=name) from None

    @contextlib.contextmanager
    def _folder(self, name: str) -> Iterator[tuple[int, str]]:
        """Like `_existing`, and makes what is missing below the container."""
        container, key = split_name(name)
        *steps, leaf = key.split("/")
        with contextlib.ExitStack() as stack:
            folder = stack.enter_context(self._opened_root())
            try:
                folder = stack.enter_context(_opened(container, folder))
            except FileNotFoundError:
                raise VaultNotFound(url=self.url) from None
            path = container
            for step in steps:
                path += f"/{step}"
                if path not in self._durable:
                    self._make(folder, step, path)
                try:
                    folder = stack.enter_context(_opened(step, folder))
                except FileNotFoundError:
                    self._durable.discard(path)
                    raise
            yield folder, leaf

    def _make(self, above: int, step: str, path: str) -> None:
        """Make a directory that may be there, and see to it that it stays."""
        with self._making:
            if path in self._durable:
                return
            with contextlib.suppress(FileExistsError):
                os.mkdir(step, 0o700, dir_fd=above)
            # even when another process made it: its entry may not have reached the disk yet
            os.fsync(above)
            self._durable.add(path)

    def _remove_empty(self, folders: list[int], name: str) -> None:
        # the root, the container and the 256 folders of segments stay
        path = name
        for above in reversed(folders[1:-1]):
            path, _, _ = path.rpartition("/")
            if path.startswith(f"{SEGMENTS}/"):
                return
            with self._making:
                self._durable.discard(path)
                try:
                    os.rmdir(path.rpartition("/")[2], dir_fd=above)
                except OSError as error:
                    if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
                        raise
                    return

    # -- the root, and what the operating system says -------------------------------------------

    @contextlib.contextmanager
    def _opened_root(self) -> Iterator[int]:
        try:
            root = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise VaultNotFound(url=self.url) from None
        try:
            yield root
        finally:
            os.close(root)

    def _refuse_foreign(self) -> None:
        """A first backup into a home directory is a slip of the pen: nothing is strewn about there."""
        present = {each.name for each in self._root.iterdir()}
        if present.isdisjoint(CONTAINERS):
            strange = sorted(each for each in present if not each.startswith(".") and each != "lost+found")
            if strange:
                raise VaultForeign(url=self.url, detail=f"it has {strange[0]!r} and no container of a vault")
        for container in present.intersection(CONTAINERS):
            if not stat.S_ISDIR(os.lstat(self._root / container).st_mode):
                raise VaultForeign(url=self.url, detail=f"{container} is not a directory")

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._raise_for(error)

    def _raise_for(self, error: OSError) -> NoReturn:
        detail = f"{error.strerror} ({errno.errorcode.get(error.errno or 0, error.errno)})"
        if error.errno in _FULL:
            raise VaultFull(url=self.url, detail=detail) from error
        if error.errno in _DENIED:
            raise VaultAccessDenied(url=self.url, detail=detail) from error
        if error.errno in _FOREIGN:
            raise VaultForeign(url=self.url, detail=f"{error.filename!r} is in the place of ours: {detail}") from error
        raise VaultUnavailable(url=self.url, detail=detail) from error


class _Temporary:
    """A file that is not yet an object; gone at the end unless it was published."""

    def __init__(self, folder: int) -> None:
        self._folder = folder
        self._name: str | None = _TEMPORARY + uuid.uuid4().hex
        self._fd = os.open(self._name, _CREATE, 0o600, dir_fd=folder)

    def __enter__(self) -> _Temporary:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)
        if self._name is not None:
            os.unlink(self._name, dir_fd=self._folder)

    def write(self, data: Buffer) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self._fd, rest) :]

    def write_all(self, data: Buffer) -> None:
        """What the file consists of, as a whole: past the page cache, if it is large."""
        whole = memoryview(data)
        done = 0
        if len(whole) >= direct.WORTH:
            fd = direct.reopened(self._fd)
            try:
                done = direct.write_blocks(fd, whole, 0)
            finally:
                if fd >= 0:
                    os.close(fd)
            os.lseek(self._fd, done, os.SEEK_SET)
        self.write(whole[done:])

    def publish(self, leaf: str, create_only: bool) -> None:
        """Durable under its name when this returns. Raises `FileExistsError` only if `create_only`."""
        assert self._name is not None
        os.fdatasync(self._fd)
        if create_only:
            # unlike a rename, a link never replaces; the temporary name goes on leaving
            with crash.around("directory.link"):
                os.link(self._name, leaf, src_dir_fd=self._folder, dst_dir_fd=self._folder, follow_symlinks=False)
        else:
            with crash.around("directory.rename"):
                os.rename(self._name, leaf, src_dir_fd=self._folder, dst_dir_fd=self._folder)
            self._name = None
        os.fsync(self._folder)


@contextlib.contextmanager
def _opened(step: str, above: int) -> Iterator[int]:
    folder = os.open(step, _OPEN_DIRECTORY, dir_fd=above)
    try:
        yield folder
    finally:
        os.close(folder)


def _part_list(name: str, fd: int, size: int) -> list[Part] | None:
    if os.pread(fd, len(partlist.MAGIC), 0) != partlist.MAGIC:
        return None
    return partlist.from_json(name, _read_exactly(name, fd, 0, size))


def _read_exactly(name: str, fd: int, offset: int, length: int) -> bytes:
    pieces: list[bytes] = []
    done = 0
    while done < length:
        try:
            piece = os.pread(fd, length - done, offset + done)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            # not the vault is unreachable: this object is lost, and the caller should hear its name
            raise ObjectCorrupt(name=name, detail="the disk cannot read it (EIO)") from error
        if not piece:
            raise ObjectTruncated(name=name, wanted=offset + length, got=offset + done)
        pieces.append(piece)
        done += len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _acceptable(name: str) -> bool:
    try:
        split_name(name)
    except BadName:
        return False
    return True


def _remove_stale(folder: int, entry: str) -> None:
    """A writer that was killed leaves its file; one that lives is done long before."""
    with contextlib.suppress(FileNotFoundError):
        if time.time() - os.stat(entry, dir_fd=folder, follow_symlinks=False).st_mtime > _STALE:
            os.unlink(entry, dir_fd=folder)


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
