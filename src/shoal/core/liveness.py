"""When a peer that says nothing counts as gone: pure accounting for the beats of a link.

Each end of a link over the network says something at least every ``beat`` seconds: a beat, where there is nothing
else. An end that has heard no byte for ``timeout`` seconds looks at what its kernel knows. A machine that acknowledges
the bytes which were sent to it is there, whatever its process does: one that is stopped, or whose task holds the
interpreter lock, is silent, and not gone. Only where the kernel has heard nothing either is the link dead.

Time is counted by a clock that stands still while its reader does: whoever was stopped, swapped out or suspended
cannot have heard anybody meanwhile, and gives everyone that time again.
"""

from __future__ import annotations

from enum import IntEnum, auto
from typing import Final

#: Looks at all links in one timeout, and looks between two beats.
LOOKS: Final = 12
LOOKS_A_BEAT: Final = 2
#: The share of the timeout for which a link that fell silent may still come back on another connection.
GRACE: Final = 1 / 6


class FairClock:
    """Time as a judge may count it.

    Parameters
    ----------
    period
        Seconds between two looks at the clock; what passes beyond twice that between two of them does not count.
    """

    __slots__ = ("_last", "period", "stood", "time")

    def __init__(self, period: float) -> None:
        self.period = period
        self.time = 0.0
        #: Seconds for which the reader stood still, in all.
        self.stood = 0.0
        self._last: float | None = None

    def look(self, now: float) -> float:
        """Return the fair time at ``now``."""
        passed = 0.0 if self._last is None else max(0.0, now - self._last)
        counted = min(passed, 2 * self.period)
        self._last = now
        self.time += counted
        self.stood += passed - counted
        return self.time


class Verdict(IntEnum):
    """What is to be done about a link."""

    #: Nothing.
    FINE = 0
    #: Nothing was said of late: a beat is due.
    BEAT = auto()
    #: Nothing was heard for the whole timeout: the kernel is to be asked (see :meth:`Pulse.judge`).
    SILENT = auto()


class Pulse:
    """What one end of a link knows of its life.

    Parameters
    ----------
    timeout
        Seconds of silence that are borne.
    now
        The fair time.
    """

    __slots__ = ("heard_at", "said_at", "timeout")

    def __init__(self, timeout: float, now: float) -> None:
        self.timeout = timeout
        self.heard_at = self.said_at = now

    def look(self, now: float, heard: bool, said: bool) -> Verdict:
        """Take whether any byte was heard, and any said, since the last look."""
        if heard:
            self.heard_at = now
        if said:
            self.said_at = now
        if now - self.heard_at >= self.timeout:
            return Verdict.SILENT
        if now - self.said_at >= self.timeout * LOOKS_A_BEAT / LOOKS:
            self.said_at = now
            return Verdict.BEAT
        return Verdict.FINE

    def silence(self, now: float) -> float:
        """Seconds for which nothing was heard of the process at the other end."""
        return now - self.heard_at

    def judge(self, now: float, machine: float | None) -> bool:
        """Whether a silent link is dead; ``machine``: how long the kernel heard nothing, None where it cannot say."""
        return self.silence(now) >= self.timeout and (machine is None or machine >= self.timeout)
