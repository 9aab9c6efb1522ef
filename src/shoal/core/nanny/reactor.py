"""When the worker process is started, ended, started again, and when not.

Only the nanny decides over the process; a worker that ends by itself is started again, at once the first time and
then more and more slowly while starts fail. An event of an earlier incarnation changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from shoal.core.effects import ERROR, INFO, WARNING, CallUser, Effect, Log, Send, Signal, Spawn, Stop
from shoal.core.events import (
    CallDone,
    ChildExited,
    ChildFailed,
    ChildReady,
    Command,
    Due,
    Event,
    LinkLost,
    MemorySample,
    Received,
)
from shoal.core.nanny.child import CHILD, ChildEvent, ChildState
from shoal.messages import Answer, Call, Close, RestartWorker, WorkerDied, WorkerGaveUp

#: Seconds between being asked to end and being killed.
GRACE = 2.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 30.0


class NannyCore:
    """All decisions of a nanny.

    Parameters
    ----------
    name
        The worker's name, for the log.
    memory_limit, terminate
        Bytes, and the fraction of them past which the process is killed; a limit of 0 is none.
    start_timeout
        Seconds that a process may take to become ready.
    crash_limit
        Starts that may fail in a row.
    """

    def __init__(
        self,
        name: str,
        memory_limit: int = 0,
        terminate: float = 0.95,
        start_timeout: float = 60.0,
        crash_limit: int = 5,
    ) -> None:
        self.name = name
        self.memory_limit, self.terminate = memory_limit, terminate
        self.start_timeout, self.crash_limit = start_timeout, crash_limit
        self.state = ChildState.DOWN
        self.incarnation = 0
        self.worker = self.address = ""
        self.restarts = 0
        #: Why the process is being ended, once that is so.
        self.reason = ""
        #: Whether it is ended on purpose, and not for what it was running.
        self._blameless = False
        self._failure = ""
        self._was_up = False
        self._closing = False
        self._failed_starts = 0
        self._due: float | None = None
        self._effects: list[Effect] = []

    def handle(self, events: Sequence[Event], now: float) -> list[Effect]:
        """Take what happened; return what is to be done, in order."""
        self._effects = []
        for event in events:
            match event:
                case Command():
                    self._on_command(event.what, event.reason, now)
                case Received():
                    for message in event.messages:
                        self._on_message(message, now)
                case ChildReady():
                    self._on_ready(event)
                case ChildFailed() if event.incarnation == self.incarnation:
                    self._failure = event.reason
                case ChildExited() if event.incarnation == self.incarnation:
                    self._on_exit(event, now)
                case MemorySample() if event.incarnation == self.incarnation:
                    self._on_memory(event.rss, now)
                case CallDone():
                    self._effects.append(Send("", Answer(event.rid, event.payload)))
                case LinkLost():
                    self._on_command("close", f"the link to the scheduler broke: {event.reason}", now)
                case Due():
                    self._on_due(now)
        return self._effects

    def deadline(self) -> float | None:
        """When :meth:`handle` is to be called even if nothing happens."""
        return self._due

    def _advance(self, event: ChildEvent) -> None:
        self.state = CHILD.advance(self.state, event, self.name)

    def _start(self, now: float) -> None:
        self._advance(ChildEvent.START)
        self.incarnation += 1
        self._was_up = self._blameless = False
        self.worker = self.address = self.reason = self._failure = ""
        self._due = now + self.start_timeout
        self._effects.append(Spawn(self.incarnation))

    def _end(self, reason: str, now: float, hard: bool = False, blameless: bool = False) -> None:
        if self.state in (ChildState.STARTING, ChildState.UP):
            self._blameless = blameless
            self._advance(ChildEvent.END)
            self.reason = reason
            self._due = now + GRACE
            self._effects.append(Signal(self.incarnation, hard))

    def _on_command(self, what: str, reason: str, now: float) -> None:
        if what == "start" and self.state is ChildState.DOWN and not self._closing:
            self._start(now)
        elif what == "restart":
            self._end(reason or "restarted", now, hard=True, blameless=True)
        elif what == "close":
            self._closing = True
            if self.state is ChildState.BACKOFF:
                self._advance(ChildEvent.EXIT_FOR_GOOD)
                self._due = None
            if self.state in (ChildState.DOWN, ChildState.GIVEN_UP):
                self._effects.append(Stop(reason or "closed"))
            else:
                self._end(reason or "closed", now, blameless=True)

    def _on_message(self, message: Any, now: float) -> None:
        match message:
            case RestartWorker() if message.worker in ("", self.worker):
                self._end(message.reason, now, hard=True, blameless=not message.blame)
            case Close():
                self._on_command("close", message.reason, now)
            case Call():
                self._effects.append(CallUser(message.rid, message.payload, message.wait))

    def _on_ready(self, event: ChildReady) -> None:
        if event.incarnation == self.incarnation and self.state is ChildState.STARTING:
            self._advance(ChildEvent.READY)
            self.worker, self.address = event.worker, event.address
            self._was_up = True
            self._failed_starts = 0
            self._due = None

    def _on_exit(self, event: ChildExited, now: float) -> None:
        never_up = not self._was_up
        reason = self.reason or self._failure or describe_exit(event.exitcode, event.signal)
        self._advance(ChildEvent.EXIT_FOR_GOOD if self._closing else ChildEvent.EXIT)
        closing = self._closing
        self._effects.append(
            Send("", WorkerDied(self.worker, reason, event.running, self._blameless, not closing, self.address))
        )
        if self._closing:
            self._due = None
            self._effects.append(Stop(reason))
            return
        self.restarts += 1
        self._failed_starts = self._failed_starts + 1 if never_up else 0
        if self._failed_starts >= self.crash_limit:
            self._advance(ChildEvent.GIVE_UP)
            self._due = None
            text = f"worker {self.name} failed to start {self._failed_starts} times in a row: {reason}"
            self._effects += [Log(ERROR, text), Send("", WorkerGaveUp(text)), Stop(text)]
            return
        pause = min(_FIRST_PAUSE * 2**self._failed_starts, _LONGEST_PAUSE) if never_up else 0.0
        self._due = now + pause
        self._effects.append(Log(WARNING, f"worker {self.name} {reason}; restart {self.restarts} in {pause:g} s"))
        if not pause:
            self._start(now)

    def _on_memory(self, rss: int, now: float) -> None:
        if self.memory_limit and self.terminate and rss > self.memory_limit * self.terminate:
            self._end(
                f"was killed by its nanny: it used {rss / 1e6:.0f} MB, over {self.terminate:.0%} of its memory limit "
                f"of {self.memory_limit / 1e6:.0f} MB",
                now,
                hard=True,
            )

    def _on_due(self, now: float) -> None:
        if self._due is None or now < self._due:
            return
        self._due = None
        if self.state is ChildState.BACKOFF:
            self._start(now)
        elif self.state is ChildState.STARTING:
            self._end(f"did not start within {self.start_timeout:g} s", now, hard=True)
        elif self.state is ChildState.EXITING:
            self._effects.append(Log(INFO, f"worker {self.name} did not end when asked; it is killed"))
            self._effects.append(Signal(self.incarnation, True))
            self._due = now + GRACE


def describe_exit(exitcode: int | None, signal: int | None) -> str:
    """How a process ended, in words."""
    if signal is not None:
        return f"was killed by signal {signal}"
    return f"exited with status {exitcode}"
