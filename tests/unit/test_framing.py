"""Frames survive every way of being cut; what is no frame is refused."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.core.framing import BODY_LIMIT, BUFFER_LIMIT, Codec, FrameReader, FramingError, pack_frame
from shoal.fields import Blob


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.tuples(st.binary(max_size=200), st.lists(st.integers(0, 200_000), max_size=3)), max_size=4),
    st.integers(1, 70_000),
)
def test_frames_come_out_as_they_went_in(frames: list[tuple[bytes, list[int]]], cut: int) -> None:
    """Whatever the pieces in which bytes arrive."""
    sent = [(body, [bytes([n % 251]) * n for n in sizes]) for body, sizes in frames]
    wire = b"".join(bytes(piece) for body, buffers in sent for piece in pack_frame(body, buffers, 7, 9))
    reader = FrameReader(BODY_LIMIT, BUFFER_LIMIT)
    found = []
    for start in range(0, len(wire), cut):
        found += reader.feed(wire[start : start + cut])
    assert [(bytes(f.body), [bytes(b) for b in f.buffers]) for f in found] == sent
    assert all((f.sequence, f.acknowledged) == (7, 9) for f in found)


@given(st.binary(min_size=18, max_size=64).filter(lambda data: data[:2] != b"HS"))
def test_random_bytes_are_refused(data: bytes) -> None:
    """The first header tells."""
    with pytest.raises(FramingError):
        FrameReader().feed(data)


def test_a_huge_length_is_refused_before_the_handshake() -> None:
    """No memory is taken for it."""
    with pytest.raises(FramingError, match="limit"):
        FrameReader().feed(pack_frame(b"x" * 5000)[0])
    with pytest.raises(FramingError, match="not allowed"):
        FrameReader().feed(b"".join(map(bytes, pack_frame(b"x", [b"y"]))))


def test_a_codec_is_freed_without_the_garbage_collector() -> None:
    """Each link has one: what comes and goes must not wait for a collection."""

    class Watched(Codec):
        __slots__ = ("__weakref__",)

    codec = Watched(Any)
    body, buffers = codec.encode([Blob([b"abc"])])
    assert len(codec.decode(body, [memoryview(bytes(one)) for one in buffers])) == 1
    seen = weakref.ref(codec)
    gc.disable()
    try:
        del codec
        assert seen() is None
    finally:
        gc.enable()
