"""A vault in OpenStack Swift: objects as they are, manifests as Static Large Objects.

Containers are `backupjobs` and `backupjobs_segments`; with a prefix, `PREFIX_backupjobs` and
`PREFIX_backupjobs_segments`. Each request is made once (a refused token aside); `RetryStore` repeats them.

A put carries the MD5 of its data, so that bytes changed on the way are refused by the server. A whole object is
checked against its ETag when read; of a range only the length can be, and readers verify by digest. Existence is
decided by all replicas (X-Newest), never by a listing or by one server that has not heard yet. Segments are shared:
no DELETE ever asks for the parts of a manifest to go with it.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO, TypeVar
from urllib.parse import quote

from swiftclient import client
from swiftclient.client import ClientException

from raksha.errors import BadName, ObjectCorrupt, ObjectMissing, ObjectTruncated, VaultUnavailable
from raksha.types import Buffer
from raksha.vault import partlist
from raksha.vault.credentials import Credentials
from raksha.vault.store import CONTAINERS, WHOLE_LIMIT, ObjectInfo, Part, check_range, split_name
from raksha.vault.swift_account import Account, HttpConn
from raksha.vault.swift_errors import translated, verdict

T = TypeVar("T")
_CHUNK = 1 << 20
#: a proxy on the way must not compress what we count
_PLAIN = {"Accept-Encoding": "identity"}
_NEWEST = {**_PLAIN, "X-Newest": "true"}
_MD5 = re.compile(r"[0-9a-f]{32}")


class SwiftStore:
    """Fulfils `Store`. `timeout` in seconds bounds each connect, send and receive, not a whole call."""

    def __init__(
        self,
        url: str,
        credentials: Credentials,
        *,
        prefix: str = "",
        timeout: float = 60.0,
        manifest_limit: int = 1000,
        page_size: int = 10000,
    ) -> None:
        """Nothing is sent until the first call."""
        self.url = url
        self.manifest_limit = manifest_limit
        self._page_size = page_size
        self._prefix = f"{prefix}_" if prefix else ""
        self._account = Account(credentials, timeout)

    # -- the protocol ---------------------------------------------------------------------------

    def prepare(self) -> None:
        for container in CONTAINERS:
            self._make_container(self._prefix + container)

    def put(self, name: str, data: Buffer, *, create_only: bool = False) -> None:
        headers = {"If-None-Match": "*"} if create_only else {}
        self._upload(name, io.BytesIO(data), len(data), _md5(data), headers)

    def put_file(self, name: str, source: BinaryIO, size: int) -> None:
        start = source.tell()
        digest, done = hashlib.md5(usedforsecurity=False), 0
        # read twice: a server that knows the sum beforehand never shows a half or a changed object
        while done < size and (chunk := source.read(min(_CHUNK, size - done))):
            digest.update(chunk)
            done += len(chunk)
        if done != size:
            raise ObjectTruncated(name=name, wanted=size, got=done)
        source.seek(start)
        self._upload(name, source, size, digest.hexdigest(), {})

    def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        check_range(offset, length)
        if length == 0:
            partlist.clip(name, self.head(name).size, offset, 0)
            return b""
        if offset == 0 and length is None:
            return self._get_whole(name)
        try:
            return self._get_range(name, offset, length, _PLAIN)
        except ObjectMissing:
            return self._get_range(name, offset, length, _NEWEST)

    def head(self, name: str) -> ObjectInfo:
        found = self._head(name)
        return ObjectInfo(int(found["content-length"]), _is_manifest(found))

    def delete(self, name: str) -> None:
        container, key = self._place(name)

        def call(url: str, token: str, conn: HttpConn) -> None:
            client.delete_object(url, token, container, key, http_conn=conn)

        try:
            self._ask(call, name)
        except ObjectMissing:
            self._assert_gone(name)

    def _assert_gone(self, name: str) -> None:
        """A proxy that reaches only servers which have not heard of an object says that there is none, and later there
        is: whoever believed it would go on and delete what that object needs."""
        try:
            self._head(name)
        except ObjectMissing:
            return
        raise VaultUnavailable(url=self.url, detail=f"{name} is there, and was said not to be when it was deleted")

    def names(self, container: str, prefix: str = "") -> Iterator[str]:
        """Names that no vault has are left out. May lag: listings are made later than objects."""
        if container not in CONTAINERS:
            raise ValueError(f"no container of a vault: {container}")
        marker = ""
        while page := self._page(container, prefix, marker):
            yield from (name for name in (f"{container}/{key}" for key in page) if _acceptable(name))
            marker = page[-1]

    def put_manifest(self, name: str, parts: Sequence[Part]) -> None:
        partlist.check(parts, self.manifest_limit)
        target = "/".join(self._place(name))
        rows = [{"path": "/" + "/".join(self._place(part.name)), "size_bytes": part.size} for part in parts]
        body = json.dumps(rows).encode()
        status, answer = self._ask(lambda _, token, conn: _put_manifest(token, conn, target, body), name, writing=True)
        status, problems = verdict(self.url, status, answer)
        if problems:
            self._explain(parts, dict(problems))
        if not 200 <= status < 300:
            with translated(self.url, name, writing=True):
                raise ClientException("", http_status=status, http_reason="in the answer to a manifest")

    def parts(self, name: str) -> list[Part]:
        return [part for part, _ in self._rows(name)]

    def close(self) -> None:
        self._account.close()

    # -- reading --------------------------------------------------------------------------------

    def _get_whole(self, name: str) -> bytes:
        answer, body = self._download(name, _NEWEST)
        etag = answer.get("etag", "")
        if not _is_manifest(answer) and _MD5.fullmatch(etag) and etag != _md5(body):
            raise ObjectCorrupt(name=name, detail="its bytes do not have the checksum that they were stored with")
        return body

    def _get_range(self, name: str, offset: int, length: int | None, headers: Mapping[str, str]) -> bytes:
        last = "" if length is None else offset + length - 1
        most = max(length or 0, WHOLE_LIMIT)
        answer, body = self._download(name, {**headers, "Range": f"bytes={offset}-{last}"}, most=most)
        size = _whole_size(answer)
        if answer.get("content-range", "").startswith("bytes */") or size < offset:
            # nothing of the range is there
            partlist.clip(name, size, offset, length)
            return b""
        wanted = partlist.clip(name, size, offset, length)
        if "content-range" not in answer:
            body = body[offset : offset + wanted]
        if len(body) != wanted:
            raise VaultUnavailable(url=self.url, detail=f"{len(body)} bytes of {name} came in place of {wanted}")
        return body

    def _download(
        self, name: str, headers: Mapping[str, str], query: str = "", most: int = WHOLE_LIMIT
    ) -> tuple[Mapping[str, str], bytes]:
        """Headers and body, all of it; with 416 the headers alone. Raises `ObjectCorrupt` for over `most` bytes."""
        container, key = self._place(name)
        seen: dict[str, Any] = {}

        def call(url: str, token: str, conn: HttpConn) -> tuple[Mapping[str, str], bytes]:
            try:
                answer, stream = client.get_object(
                    url, token, container, key, conn, 1, query, response_dict=seen, headers=dict(headers)
                )
            except ClientException as error:
                if error.http_status != 416:
                    raise
                return error.http_response_headers, b""
            size = _stated_length(answer)
            if size > most or answer.get("content-encoding", "identity") != "identity":
                stream.close()  # without reading it: somebody put a bomb there
                raise ObjectCorrupt(name=name, detail=f"it has {size} bytes or is packed, unlike anything of its kind")
            body = stream.read()
            if len(body) != size:
                raise ConnectionError(f"{name} broke off after {len(body)} bytes")
            return answer, body

        try:
            return self._ask(call, name)
        except VaultUnavailable:
            # Swift hangs up where a part is missing or changed, which looks like a bad server or network
            if not query and seen and self.head(name).manifest:
                self._find_damage(name)
            raise

    def _head(self, name: str) -> Mapping[str, str]:
        container, key = self._place(name)

        def call(url: str, token: str, conn: HttpConn) -> Mapping[str, str]:
            found: Mapping[str, str] = client.head_object(url, token, container, key, conn, headers=dict(_NEWEST))
            _stated_length(found)
            return found

        return self._ask(call, name)

    def _page(self, container: str, prefix: str, marker: str) -> list[str]:
        def call(url: str, token: str, conn: HttpConn) -> list[str]:
            try:
                _, rows = client.get_container(
                    url, token, self._prefix + container, marker, self._page_size, prefix, http_conn=conn
                )
                return [str(row["name"]) for row in rows]
            except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:  # changed on the way
                raise VaultUnavailable(url=self.url, detail=f"a listing of {container} cannot be read") from error

        try:
            return self._ask(call, container)
        except ObjectMissing:
            self._assert_no_container(container)
            return []

    def _assert_no_container(self, container: str) -> None:
        """A vault whose listing is said not to be there would seem to be empty, and whole."""

        def call(url: str, token: str, conn: HttpConn) -> object:
            return client.head_container(url, token, self._prefix + container, conn)

        try:
            self._ask(call, container)
        except ObjectMissing:
            return
        raise VaultUnavailable(url=self.url, detail=f"the container {container} is there, and its listing was not")

    # -- manifests ------------------------------------------------------------------------------

    def _rows(self, name: str) -> list[tuple[Part, str]]:
        """The parts of a manifest, each with the ETag that it had when the manifest was made."""
        answer, body = self._download(name, _NEWEST, "multipart-manifest=get")
        if not _is_manifest(answer):
            raise ObjectCorrupt(name=name, detail="it is no manifest")
        try:
            rows = [(self._part(row), str(row["hash"])) for row in json.loads(body)]
            partlist.check([part for part, _ in rows], len(rows))
        except (ValueError, TypeError, KeyError, RecursionError, BadName) as error:
            raise ObjectCorrupt(name=name, detail=f"its part list cannot be read ({error})") from error
        return rows

    def _part(self, row: Mapping[str, Any]) -> Part:
        path = row["name"].removeprefix("/")
        if not path.startswith(self._prefix):
            raise ValueError(f"{path} is outside the vault")
        return Part(path.removeprefix(self._prefix), int(row["bytes"]), bool(row.get("sub_slo")))

    def _explain(self, parts: Sequence[Part], problems: Mapping[str, str]) -> None:
        """Say what is wrong with parts that Swift did not take, by asking all replicas."""
        for part in parts:
            if "/".join(self._place(part.name)) in problems:
                partlist.same_size(part, self.head(part.name).size)
        path, problem = next(iter(problems.items()))
        raise VaultUnavailable(url=self.url, detail=f"{path}: {problem}")

    def _find_damage(self, name: str) -> None:
        """Raises `Damaged` for the first part of a manifest that is not as it was, if there is one."""
        for part, etag in self._rows(name):
            found = self._head(part.name)
            partlist.same_size(part, int(found["content-length"]))
            if found.get("etag", "").strip('"') != etag.strip('"'):
                raise ObjectCorrupt(name=part.name, detail=f"it has changed since {name} was made of it")
            if part.manifest:
                self._find_damage(part.name)

    # -- writing, and all requests --------------------------------------------------------------

    def _make_container(self, container: str) -> None:
        def call(url: str, token: str, conn: HttpConn) -> None:
            client.put_container(url, token, container, http_conn=conn)

        self._ask(call, writing=True)

    def _upload(self, name: str, source: BinaryIO, size: int, digest: str, headers: dict[str, str]) -> None:
        container, key = self._place(name)
        start = source.tell()

        def call(url: str, token: str, conn: HttpConn) -> str:
            source.seek(start)
            etag: str = client.put_object(
                url,
                token,
                container,
                key,
                # from a file, so that the time-out counts for each block that is sent and not for all of them
                contents=source if size else b"",
                content_length=size,
                etag=digest,
                content_type="application/octet-stream",
                headers=headers,
                http_conn=conn,
            )
            return etag

        etag = self._ask(call, name, writing=True)
        if etag != digest:
            raise VaultUnavailable(url=self.url, detail=f"{name} was stored as {etag}, and {digest} was sent")

    def _place(self, name: str) -> tuple[str, str]:
        """Container and key as Swift knows them."""
        container, key = split_name(name)
        return self._prefix + container, key

    def _ask(self, call: Callable[[str, str, HttpConn], T], name: str = "", *, writing: bool = False) -> T:
        with translated(self.url, name, writing=writing):
            return self._account.request(call)


def _put_manifest(token: str, conn: HttpConn, target: str, body: bytes) -> tuple[int, bytes]:
    """Status and body of the answer, which swiftclient's `put_object` does not give."""
    parsed, connection = conn
    path = f"{parsed.path}/{quote(target)}?multipart-manifest=put&heartbeat=on"
    headers = {"X-Auth-Token": token, "Accept": "application/json", "Content-Type": "application/octet-stream"}
    connection.request("PUT", path, body, {**headers, **_PLAIN})
    response = connection.getresponse()
    answer: bytes = response.read()
    if not 200 <= response.status < 300:
        raise ClientException.from_response(response, "Manifest PUT failed", answer)
    return response.status, answer


def _stated_length(answer: Mapping[str, str]) -> int:
    """The HTTP library takes headers that break off for complete ones; those of Swift always hold a length."""
    if "content-length" not in answer:
        raise ConnectionError("an answer broke off in its headers")
    return int(answer["content-length"])


def _whole_size(answer: Mapping[str, str]) -> int:
    """Bytes of the object that a (part of an) answer belongs to."""
    if "content-range" in answer:
        return int(answer["content-range"].rpartition("/")[2])
    return int(answer["content-length"])


def _is_manifest(headers: Mapping[str, str]) -> bool:
    return headers.get("x-static-large-object", "").lower() == "true"


def _md5(data: Buffer) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def _acceptable(name: str) -> bool:
    try:
        split_name(name)
    except BadName:
        return False
    return True
