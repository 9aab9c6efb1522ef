"""A sealed frame counts only as the peer of the handshake made it, in its place."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.core.framing import BODY_LIMIT, BUFFER_LIMIT, FrameReader, FramingError, SealError, pack_frame, seal_frame
from shoal.core.sealing import Seal, seals


def _reader(seal: Seal) -> FrameReader:
    reader = FrameReader(BODY_LIMIT, BUFFER_LIMIT)
    reader.expect_seals(seal)
    return reader


def _wires(frames: list[tuple[bytes, list[bytes]]], seal: Seal) -> list[bytes]:
    return [b"".join(map(bytes, seal_frame(pack_frame(body, buffers, 7, 9), seal))) for body, buffers in frames]


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.tuples(st.binary(max_size=200), st.lists(st.integers(0, 200_000), max_size=3)), max_size=4),
    st.integers(1, 70_000),
)
def test_sealed_frames_come_out_as_they_went_in(frames: list[tuple[bytes, list[int]]], cut: int) -> None:
    """Whatever the pieces in which bytes arrive."""
    sent = [(body, [bytes([n % 251]) * n for n in sizes]) for body, sizes in frames]
    reader = _reader(seals(b"s" * 16, b"t")[0])
    wire = b"".join(_wires(sent, seals(b"s" * 16, b"t")[0]))
    found = []
    for start in range(0, len(wire), cut):
        found += reader.feed(wire[start : start + cut])
    assert [(bytes(f.body), [bytes(b) for b in f.buffers]) for f in found] == sent


@pytest.mark.parametrize("large", [False, True])
def test_every_flipped_bit_is_noticed(large: bool) -> None:
    """In the header, the lengths, the body, the buffers and the tags: nothing of that frame, or after it, comes out."""
    buffers = [b"b" * 40_000, b"c" * 40_000] if large else [b"b" * 20]
    wires = _wires([(b"first", []), (b"body", buffers), (b"last", [])], Seal(b"k" * 32))
    rng = random.Random(1)
    edges = list(range(60)) + list(range(len(wires[1]) - 20, len(wires[1])))
    for place in edges + [rng.randrange(len(wires[1])) for _ in range(40)]:
        bad = bytearray(wires[1])
        bad[place] ^= 1 << rng.randrange(8)
        reader, found = _reader(Seal(b"k" * 32)), list(_reader(Seal(b"k" * 32)).feed(b""))
        with pytest.raises(FramingError):
            for wire in (wires[0], bytes(bad), wires[2], bytes(9_000_000)):
                found += reader.feed(wire)
        assert [bytes(frame.body) for frame in found] == [b"first"]


@pytest.mark.parametrize("order", [(0, 0), (1,), (0, 2), (1, 0), (0, 1, 0)])
def test_frames_count_once_and_in_their_order(order: tuple[int, ...]) -> None:
    """What is repeated, left out or put in another order is refused."""
    wires = _wires([(b"0", []), (b"1", []), (b"2", [])], Seal(b"k" * 32))
    reader = _reader(Seal(b"k" * 32))
    with pytest.raises(SealError):
        for number in order:
            reader.feed(wires[number])


def test_frames_count_on_their_link_and_in_their_direction() -> None:
    """One of another connection, and one's own that comes back, are refused."""
    there, back = seals(b"s" * 16, b"one")
    other, _ = seals(b"s" * 16, b"two")
    stranger, _ = seals(b"S" * 16, b"one")
    for seal in (back, other, stranger):
        (wire,) = _wires([(b"x", [])], seal)
        with pytest.raises(SealError):
            _reader(seals(b"s" * 16, b"one")[0]).feed(wire)
    assert _reader(seals(b"s" * 16, b"one")[0]).feed(_wires([(b"x", [])], there)[0])


def test_no_memory_is_taken_for_a_length_that_the_peer_did_not_say() -> None:
    """The lengths are checked before anything is reserved."""
    asked: list[int] = []

    def allocate(nbytes: int) -> memoryview:
        asked.append(nbytes)
        return memoryview(bytearray(nbytes))

    reader = FrameReader(BODY_LIMIT, BUFFER_LIMIT, allocate)
    reader.expect_seals(Seal(b"k" * 32))
    with pytest.raises(SealError):
        reader.feed(pack_frame(b"x" * 100_000)[0])
    assert not asked
