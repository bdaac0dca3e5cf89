"""Objects in the place of ours that would fill the memory of whoever reads them."""

from __future__ import annotations

import gzip
import time
import urllib.request
from typing import Any

import pytest

from raksha.errors import ObjectCorrupt
from raksha.vault.store import WHOLE_LIMIT, Part, Store
from tests.contract.conftest import SwiftPlace, opened
from tests.contract.test_store_swift import token_of

NAME = "backupjobs/j/r/run.json"
PIECE = bytes(4 << 20)


def test_nothing_larger_than_anything_of_ours_is_read_whole(store: Store) -> None:
    store.put("backupjobs_segments/ab/x", PIECE)
    parts = [Part("backupjobs_segments/ab/x", len(PIECE))]
    most = WHOLE_LIMIT // len(PIECE)
    store.put_manifest(NAME, parts * most)
    assert len(store.get(NAME)) == WHOLE_LIMIT
    store.put_manifest(NAME, parts * 1000)
    begun = time.monotonic()
    for ask in (lambda: store.get(NAME), lambda: store.get(NAME, 1)):
        with pytest.raises(ObjectCorrupt, match="its kind"):
            ask()
    assert time.monotonic() - begun < 5
    # what is wanted of it can be had, and everything else
    assert store.get(NAME, 3999 << 20, 10) == bytes(10)
    assert store.get("backupjobs_segments/ab/x") == PIECE


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br"])
def test_what_would_unpack_itself_is_not_read(swift_place: SwiftPlace, encoding: str) -> None:
    with opened(swift_place) as store:
        store.put(NAME, b"{}")
        _put(swift_place, NAME, gzip.compress(bytes(64 << 20)), {"Content-Encoding": encoding})
        for ask in (lambda: store.get(NAME), lambda: store.get(NAME, 0, 100)):
            with pytest.raises(ObjectCorrupt, match="is packed"):
                ask()
        store.put(NAME, b"{}")
        assert store.get(NAME) == b"{}"


def _put(place: SwiftPlace, name: str, data: bytes, headers: dict[str, Any]) -> None:
    """As the owner of the account."""
    token = token_of(place.bed)
    url = f"{place.bed.address}/v1/{_account(place)}/{place.prefix}_{name}"
    request = urllib.request.Request(url, data, {"X-Auth-Token": token, **headers}, method="PUT")
    urllib.request.urlopen(request, timeout=30).close()


def _account(place: SwiftPlace) -> str:
    headers = {"X-Auth-User": place.bed.user, "X-Auth-Key": place.bed.key}
    with urllib.request.urlopen(urllib.request.Request(place.bed.auth_url, headers=headers)) as answer:
        return str(answer.headers["X-Storage-Url"]).rpartition("/")[2]
