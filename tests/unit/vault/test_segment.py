"""Segments: frames in, the same plaintext out, and nothing else ever."""

import os
import random
from threading import Thread

import blake3
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from raksha.errors import ObjectCorrupt
from raksha.vault.segment import (
    ALIGN,
    ClusterHasher,
    Codec,
    SegmentRow,
    decode,
    decode_all,
    frame_limit,
    object_name,
    padded,
    segment_digest,
)

KEY = bytes(range(32))
HASHER = ClusterHasher(KEY)
CLUSTER = 4096
NAME = "backupjobs_segments/ab/abc-run.1"


def row_of(clusters: list[bytes], claim: str = "run.1") -> tuple[SegmentRow, bytes, list[bytes]]:
    lengths, body = Codec().compress(clusters)
    hashes = [HASHER.hash(each) for each in clusters]
    return SegmentRow(segment_digest(hashes), claim, len(body), lengths), body, hashes


@given(st.lists(st.tuples(st.integers(0, CLUSTER), st.integers(0, 255)), min_size=1, max_size=9))
@settings(deadline=None)
def test_every_cluster_comes_back(shapes: list[tuple[int, int]]) -> None:
    clusters = [os.urandom(noise) + bytes([fill]) * (CLUSTER - noise) for noise, fill in shapes]
    row, body, hashes = row_of(clusters)
    assert row.stored == len(body) == padded(sum(row.lengths))
    assert row.offsets()[-1] == sum(row.lengths)
    assert not any(body[row.offsets()[-1] :])
    for index, plain in enumerate(clusters):
        assert row.offset(index) == row.offsets()[index]
        assert row.lengths[index] <= frame_limit(CLUSTER)
        assert decode(row.frame(body, index), hashes[index], HASHER, CLUSTER, name=row.name) == plain
    frames = [row.frame(body, index) for index in range(len(clusters))]
    assert decode_all(frames, hashes, [HASHER] * len(frames), CLUSTER, row.name) == clusters


@given(st.integers(0, 3), st.data())
@settings(deadline=None)
def test_one_wrong_frame_among_many_is_found(bad: int, data: st.DataObject) -> None:
    noise = random.Random(1)
    clusters = [bytes([number]) * 2000 + noise.randbytes(CLUSTER - 2000) for number in range(4)]
    row, body, hashes = row_of(clusters)
    frames = [bytes(row.frame(body, index)) for index in range(4)]
    hashers = [HASHER] * 4
    damage = data.draw(st.sampled_from(["flip", "cut", "short", "long", "bomb", "no size", "other", "hash"]))
    match damage:
        case "flip":
            at = data.draw(st.integers(0, len(frames[bad]) - 1))
            frames[bad] = frames[bad][:at] + bytes([frames[bad][at] ^ 1]) + frames[bad][at + 1 :]
        case "cut":
            frames[bad] = frames[bad][: data.draw(st.integers(0, len(frames[bad]) - 1))]
        case "short":
            frames[bad] = zstandard.ZstdCompressor().compress(b"x" * (CLUSTER - 1))
        case "long":
            frames[bad] = zstandard.ZstdCompressor().compress(b"x" * (CLUSTER + 1))
        case "bomb":
            frames[bad] = zstandard.ZstdCompressor().compress(bytes(1 << 24))
        case "no size":
            frames[bad] = zstandard.ZstdCompressor(write_content_size=False).compress(clusters[bad])
        case "other":
            frames[bad] = frames[bad - 1]
        case "hash":
            hashers[bad] = ClusterHasher(bytes(32))
    try:
        decoded = decode_all(frames, hashes, hashers, CLUSTER, row.name)
    except ObjectCorrupt as error:
        assert error.fields["name"] == row.name
    else:
        assert damage == "flip" and decoded == clusters, "a flip may hit a bit that means nothing"


@pytest.mark.parametrize("size", [4096, 65536, 1 << 17, 1 << 21])
def test_the_frame_limit_holds_for_noise(size: int) -> None:
    lengths, _ = Codec(level=1).compress([os.urandom(size)])
    assert lengths[0] <= frame_limit(size)


def test_digests_are_what_the_format_says() -> None:
    clusters = [b"a" * CLUSTER, b"b" * CLUSTER]
    hashes = [blake3.blake3(each, key=KEY).digest()[:16] for each in clusters]
    row, _, ours = row_of(clusters, claim="0e5f.1")
    assert ours == hashes
    digest = blake3.blake3(hashes[0] + hashes[1]).hexdigest()
    assert row.name == f"backupjobs_segments/{digest[:2]}/{digest}-0e5f.1"


def test_the_body_is_plain_zstd_frames_with_checksums() -> None:
    row, body, _ = row_of([b"a" * CLUSTER, os.urandom(CLUSTER)])
    assert len(body) % ALIGN == 0
    for index in range(2):
        parameters = zstandard.get_frame_parameters(row.frame(body, index))
        assert parameters.has_checksum and parameters.content_size == CLUSTER and parameters.dict_id == 0


def test_another_key_gives_other_hashes() -> None:
    assert ClusterHasher(bytes(32)).hash(b"x") != HASHER.hash(b"x")
    with pytest.raises(ValueError, match="32 bytes"):
        ClusterHasher(b"short")


def test_any_flipped_bit_of_a_frame_is_found_or_changes_nothing() -> None:
    plain = os.urandom(200) + bytes(CLUSTER - 200)
    row, body, hashes = row_of([plain])
    frame = bytes(row.frame(body, 0))
    found = 0
    for position in range(len(frame) * 8):
        bad = bytearray(frame)
        bad[position // 8] ^= 1 << position % 8
        try:
            assert decode(bad, hashes[0], HASHER, CLUSTER, name=NAME) == plain
        except ObjectCorrupt as error:
            assert error.fields["name"] == NAME
            found += 1
    assert found > len(frame) * 7


def test_every_truncation_is_found() -> None:
    row, body, hashes = row_of([os.urandom(100) + bytes(CLUSTER - 100)])
    frame = bytes(row.frame(body, 0))
    for length in range(len(frame)):
        with pytest.raises(ObjectCorrupt):
            decode(frame[:length], hashes[0], HASHER, CLUSTER, name=NAME)
    with pytest.raises(ObjectCorrupt, match="unused data"):
        decode(frame + b"x", hashes[0], HASHER, CLUSTER, name=NAME)


def test_a_valid_frame_of_other_data_is_refused() -> None:
    row, body, _ = row_of([b"a" * CLUSTER])
    with pytest.raises(ObjectCorrupt, match="hash"):
        decode(row.frame(body, 0), HASHER.hash(b"b" * CLUSTER), HASHER, CLUSTER, name=NAME)


@pytest.mark.parametrize("size", [0, 1, CLUSTER - 1, CLUSTER + 1, 1 << 30])
def test_a_frame_of_another_size_is_refused_before_it_is_decompressed(size: int) -> None:
    """A bomb of 1 GiB is some 30 KiB long and perfectly valid."""
    plain = bytes(size)
    bomb = zstandard.ZstdCompressor(level=1).compress(plain)
    with pytest.raises(ObjectCorrupt, match=f"declares {size} bytes"):
        decode(bomb, HASHER.hash(b""), HASHER, CLUSTER, name=NAME)


def test_a_frame_that_does_not_tell_its_size_is_refused() -> None:
    plain = bytes(CLUSTER)
    frame = zstandard.ZstdCompressor(write_content_size=False).compress(plain)
    with pytest.raises(ObjectCorrupt, match="declares"):
        decode(frame, HASHER.hash(plain), HASHER, CLUSTER, name=NAME)


def test_a_row_knows_its_bounds() -> None:
    row, body, _ = row_of([b"a" * CLUSTER, b"b" * CLUSTER])
    for index in (-1, 2):
        with pytest.raises(ObjectCorrupt, match=f"number {index} is wanted"):
            row.offset(index)
    with pytest.raises(ObjectCorrupt, match="should have 512"):
        row.frame(body[: row.lengths[0]], 1)


@pytest.mark.parametrize("claim", ["", "../x", "a/b", "-a", "a\n", "a b", "é", "a" * 129])
def test_a_claim_cannot_leave_its_folder(claim: str) -> None:
    with pytest.raises(ValueError, match="no object name"):
        object_name(bytes(32), claim)


def test_threads_decode_at_once() -> None:
    clusters = [bytes([n]) * CLUSTER for n in range(32)]
    row, body, hashes = row_of(clusters)
    wrong: list[int] = []

    def work() -> None:
        plain = [decode(row.frame(body, index % 32), hashes[index % 32], HASHER, CLUSTER) for index in range(640)]
        wrong.extend(index for index, each in enumerate(plain) if each != clusters[index % 32])

    threads = [Thread(target=work) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert not wrong
