"""Links between nodes: in order each, late, in no order among each other, and breaking."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from random import Random
from typing import Any

from shoal.core.channel import Channel, to_wire
from shoal.core.framing import Codec
from shoal.errors import InvariantViolation

Schedule = Callable[[float, Callable[[], None]], None]


class Wire:
    """One direction of a link. Messages go through the real codec, several in one frame where they meet.

    Parameters
    ----------
    union
        What may be said on it.
    deliver
        Takes the messages of a frame.
    """

    def __init__(
        self, union: Any, rng: Random, delay: tuple[float, float], after: Schedule, deliver: Callable[[list[Any]], None]
    ) -> None:
        self._codec = Codec(union)
        self._random, self._delay, self._after, self._deliver = rng, delay, after, deliver
        self._line: deque[tuple[int, Any]] = deque()
        #: What the two ends know of the conversation: this one of what it said, that one of what it heard.
        self._here, self._there = Channel(b"sim"), Channel(b"sim")
        self._taken = 0
        self.cut = self.interrupted = False
        #: Half open: what is sent is lost, and nobody is told.
        self.swallows = False
        #: Seconds that are added to each delivery.
        self.slowness = 0.0

    def send(self, message: Any) -> None:
        """Put a message in line."""
        if self.cut or self.swallows:
            return
        frame = (self._here.header()[0], message)
        self._here.keep(frame, 1)
        if not self.interrupted:
            self._depart(frame)

    def _depart(self, frame: tuple[int, Any]) -> None:
        self._line.append(frame)
        low, high = self._delay
        self._after(self._random.uniform(low, high) + self.slowness, self._arrive)

    def _arrive(self) -> None:
        """A frame arrives: one message, or all that are in line."""
        if self.cut or self.swallows or not self._line:
            return
        count = len(self._line) if self._random.random() < 0.5 else 1
        frames = [self._line.popleft() for _ in range(count)]
        messages = [message for number, message in frames if self._is_new(number)]
        if self._random.random() < 0.5:
            self._here.acknowledged(self._there.header()[1])
        if messages:
            body, buffers = self._codec.encode(messages)
            self._deliver(self._codec.decode(body, [memoryview(bytes(buffer)) for buffer in buffers]))

    def _is_new(self, number: int) -> bool:
        """Whether the receiver takes this frame for one that it has not heard; it is right about that."""
        new = self._there.hears(number, 1)
        if new:
            if number != to_wire(self._taken):
                raise InvariantViolation(f"frame {number} is taken in place of {to_wire(self._taken)}")
            self._taken += 1
        return new

    def interrupt(self) -> None:
        """The connection breaks: what is on its way is lost."""
        self.interrupted = True
        self._line.clear()

    def go_on(self) -> int:
        """There is another connection: what may not have been heard is said again. Return how much that is."""
        self.interrupted = False
        frames = [] if self.cut or self.swallows else list(self._here.again(to_wire(self._there.heard)))
        for frame in frames:
            self._depart(frame)
        return len(frames)

    def break_off(self) -> None:
        """Nothing more arrives."""
        self.cut = True
        self._line.clear()
