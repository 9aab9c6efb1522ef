"""The one loop: bytes and timers → events → a core → effects → IO.

Everything that happened since the last turn goes to the core in one call. A turn is never entered from within
itself: what happens while effects are carried out waits for the next round of the same turn.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from time import monotonic

from shoal.core.effects import Effect
from shoal.core.events import Due, Event
from shoal.shell.ports import Clock, Core

logger = logging.getLogger("shoal.driver")

#: Seconds that a timer runs at most; then the core is asked anew.
_LONGEST = 1e6


class Driver:
    """Drives one core.

    Parameters
    ----------
    core
        The machine.
    perform
        Carries out one effect.
    loop
        Where timers run.
    on_crash
        Called with the exception if the core raises: that is a bug, and the program ends with its story.
    """

    def __init__(
        self,
        core: Core,
        perform: Callable[[Effect], None],
        loop: asyncio.AbstractEventLoop,
        on_crash: Callable[[BaseException], None],
        clock: Clock = monotonic,
    ) -> None:
        self._core, self._perform, self._loop, self._on_crash, self._clock = core, perform, loop, on_crash, clock
        self._events: list[Event] = []
        #: What the core is told in this turn; empty between turns, since values may hang on it.
        self.turn: list[Event] = []
        self._turning = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at: float | None = None
        self._closed = False

    def push(self, event: Event) -> None:
        """Tell the core of ``event`` now, or in the next round if a turn is under way."""
        if self._closed:
            return
        self._events.append(event)
        if not self._turning:
            self._turn()

    def push_all(self, events: list[Event]) -> None:
        """As :meth:`push`, for several at once."""
        if self._closed:
            return
        self._events += events
        if not self._turning:
            self._turn()

    def _turn(self) -> None:
        self._turning = True
        try:
            while self._events and not self._closed:
                self.turn, self._events = self._events, []
                for effect in self._core.handle(self.turn, self._clock()):
                    self._perform(effect)
            self._arm()
        except Exception as error:
            logger.exception("the core failed; this is a bug in shoal")
            self.close()
            self._on_crash(error)
        finally:
            self._turning = False
            self.turn = []

    def _arm(self) -> None:
        due = None if self._closed else self._core.deadline()
        if due == self._timer_at:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = due
        delay = None if due is None else min(max(0.0, due - self._clock()), _LONGEST)
        self._timer = None if delay is None else self._loop.call_later(delay, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = self._timer_at = None
        self.push(Due())

    def close(self) -> None:
        """Stop: no further event is handled."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
