"""Links between nodes: in order each, late, in no order among each other, and breaking."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from random import Random
from typing import Any

from shoal.core.framing import Codec

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
        self._line: deque[Any] = deque()
        self._arrivals = 0
        self.cut = False
        #: Half open: what is sent is lost, and nobody is told.
        self.swallows = False
        #: Seconds that are added to each delivery.
        self.slowness = 0.0

    def send(self, message: Any) -> None:
        """Put a message in line."""
        if self.cut or self.swallows:
            return
        self._line.append(message)
        self._arrivals += 1
        low, high = self._delay
        self._after(self._random.uniform(low, high) + self.slowness, self._arrive)

    def _arrive(self) -> None:
        """A frame arrives: one message, or all that are in line."""
        if self.cut or self.swallows or not self._line:
            return
        count = len(self._line) if self._random.random() < 0.5 else 1
        messages = [self._line.popleft() for _ in range(count)]
        body, buffers = self._codec.encode(messages)
        self._deliver(self._codec.decode(body, [memoryview(bytes(buffer)) for buffer in buffers]))

    def break_off(self) -> None:
        """Nothing more arrives."""
        self.cut = True
        self._line.clear()
