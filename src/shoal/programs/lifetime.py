"""How long a worker lives: after a while it asks to be retired, and perhaps another takes its place."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

from shoal import config
from shoal.errors import UsageError
from shoal.messages import AskRetirement

#: Seconds after which a worker that could not go asks again.
_AGAIN = 30.0


class Lifetime:
    """When a worker asks to be retired.

    Parameters
    ----------
    duration
        Seconds, or text as ``"2 hours"``; None for ever (``distributed.worker.lifetime.duration``).
    stagger
        Up to so much earlier or later, so that workers that started together do not go together.
    restart
        Whether its nanny is to start another.

    Raises
    ------
    UsageError
        If an argument makes no sense, naming it.
    """

    def __init__(self, duration: Any = None, stagger: Any = None, restart: bool | None = None) -> None:
        name = "distributed.worker.lifetime."
        self.duration = config.seconds(config.get(name + "duration") if duration is None else duration, "lifetime")
        stagger = config.get(name + "stagger", 0) if stagger is None else stagger
        self.stagger = config.seconds(stagger, "lifetime_stagger") or 0.0
        self.restart = bool(config.get(name + "restart", False) if restart is None else restart)
        if self.duration is not None and (self.duration <= 0 or self.stagger < 0):
            raise UsageError(f"lifetime must be more than nothing, got {self.duration:g} s ± {self.stagger:g} s")
        self._timer: asyncio.TimerHandle | None = None
        self._send: Callable[[AskRetirement], None] | None = None

    def start(self, send: Callable[[AskRetirement], None]) -> None:
        """The worker is up: ``send`` is called with its request when its time is over."""
        self._send = send
        if self.duration is not None:
            seconds = max(0.0, self.duration + random.uniform(-self.stagger, self.stagger))
            self._timer = asyncio.get_running_loop().call_later(seconds, self._ask)

    def _ask(self) -> None:
        assert self._send is not None
        assert self.duration is not None
        self._timer = None
        self._send(AskRetirement(f"its lifetime of {self.duration:g} s is over", None, self.restart))

    def stays(self) -> None:
        """The scheduler could not let it go: it asks again in a while, if its time is over."""
        if self.duration is not None and self._timer is None and self._send is not None:
            self._timer = asyncio.get_running_loop().call_later(_AGAIN, self._ask)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
