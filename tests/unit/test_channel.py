"""A conversation over connections that break: everything arrives once, in order."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.core import channel as module
from shoal.core.channel import ACK_FRAMES, Channel, from_wire, to_wire
from shoal.core.framing import FramingError


@given(st.integers(0, 2**40), st.integers(-(2**30), 2**30))
def test_numbers_survive_the_header(near: int, delta: int) -> None:
    """Also where they go round; 0 stands for none of them."""
    number = max(0, near + delta)
    assert 0 < to_wire(number) <= 0xFFFFFFFF
    assert from_wire(to_wire(number), near) == number


@pytest.mark.parametrize("seed", range(30))
def test_cut_anywhere(seed: int) -> None:
    """Frames and acknowledgements are lost with each connection."""
    rng = random.Random(seed)
    one, two = Channel(b"t"), Channel(b"t")
    one.sent = two.heard = start = rng.choice([0, 0xFFFFFFF0])
    under_way: list[tuple[int, int]] = []
    heard: list[int] = []
    for number in range(300):
        if rng.random() < 0.6 or number == 299:
            short, _ = one.header()
            frame = (short, one.sent)
            one.keep(frame, 10)
            under_way.append(frame)
        if rng.random() < 0.5 and under_way:
            short, value = under_way.pop(0)
            if two.hears(short, 10):
                heard.append(value)
            if two.should_say or rng.random() < 0.1:
                one.acknowledged(two.header()[1])
        if rng.random() < 0.05 or number == 299:
            under_way = list(one.again(to_wire(two.heard)))
    for short, value in under_way:
        if two.hears(short, 10):
            heard.append(value)
    assert heard == list(range(start, one.sent))
    one.acknowledged(to_wire(two.heard))
    assert (one.kept, one.kept_bytes) == (0, 0)


def test_what_cannot_be() -> None:
    """A gap, an acknowledgement of what was never said, a peer that forgot what it had acknowledged."""
    channel = Channel(b"t")
    channel.keep("frame", 5)
    with pytest.raises(FramingError, match="were sent"):
        channel.acknowledged(to_wire(2))
    with pytest.raises(FramingError, match="was expected"):
        channel.hears(to_wire(1), 5)
    assert channel.hears(to_wire(0), 5)
    assert not channel.hears(to_wire(0), 5)  # it came twice
    channel.acknowledged(to_wire(1))
    with pytest.raises(FramingError, match="are kept"):
        channel.again(to_wire(0))


def test_what_is_heard_is_acknowledged_in_time() -> None:
    """After some frames, or bytes."""
    channel = Channel(b"t")
    for number in range(ACK_FRAMES):
        assert not channel.should_say
        channel.hears(to_wire(number), 1)
    assert channel.should_say
    channel.header()
    assert not channel.should_say
    channel.hears(to_wire(ACK_FRAMES), module.ACK_BYTES)
    assert channel.should_say
