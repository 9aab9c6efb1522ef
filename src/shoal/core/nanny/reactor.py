"""When the worker process is started, ended, started again, and when not.

What is wanted (a worker, none for now, none any more) and what is at work (a start, an end) are kept apart: orders
change the first at once, and each exit of the process is followed by what is wanted by then. Only the nanny decides
over the process; a worker that ends by itself is started again, at once the first time and then more and more slowly
while starts fail. An event of an earlier incarnation changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import Any

from shoal.core.effects import ERROR, INFO, WARNING, CallUser, Effect, InstallPlugin, Log, Send, Signal, Spawn, Stop
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
from shoal.core.nanny.death import Cause, describe_exit
from shoal.messages import Answer, Call, ChangePlugin, Close, Leave, Leaving, RestartWorker, WorkerDied, WorkerGaveUp

#: Seconds between being asked to end and being killed.
GRACE = 2.0
#: The share of a timeout that a process has for ending by itself.
_ASKING = 0.8
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 30.0
#: Bytes a second at which a process can take memory, at most.
_GROWTH = 4e9
_SHORTEST_INTERVAL = 0.01


class Wish(IntEnum):
    """What the owner wants."""

    #: A worker, and another whenever it is gone.
    UP = 0
    #: The worker that is there; when it goes, the nanny goes too.
    LEAVE = 1
    #: No worker, until told otherwise.
    DOWN = 2
    #: No worker, and no nanny.
    CLOSED = 3


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
    reconnect
        Whether another worker is started when one has ended by itself.
    """

    def __init__(
        self,
        name: str,
        memory_limit: int = 0,
        terminate: float = 0.95,
        start_timeout: float = 60.0,
        crash_limit: int = 5,
        reconnect: bool = True,
    ) -> None:
        self.name = name
        self.memory_limit, self.terminate = memory_limit, terminate
        self.start_timeout, self.crash_limit, self.reconnect = start_timeout, crash_limit, reconnect
        self.state = ChildState.DOWN
        self.wish = Wish.DOWN
        self.incarnation = 0
        self.worker = self.address = ""
        self.restarts = 0
        #: How many ended, by cause.
        self.deaths: dict[str, int] = {}
        #: Why the process is being ended, once that is so.
        self.reason = ""
        self.failure = ""
        #: Whether it ends without that anybody wanted it to.
        self.failed = False
        self._cause = Cause.EXIT
        self._replace = False
        #: Whether its owner wants it to leave; the scheduler may change its mind, that does not.
        self._leaves_for_good = False
        self._was_up = False
        self._failed_starts = 0
        self._due: float | None = None
        self._effects: list[Effect] = []

    def handle(self, events: Sequence[Event], now: float) -> list[Effect]:
        """Take what happened; return what is to be done, in order."""
        self._effects = []
        for event in events:
            match event:
                case Command():
                    self._on_command(event.what, event.reason, event.timeout, now)
                case Received():
                    for message in event.messages:
                        self._on_message(message, now)
                case ChildReady():
                    self._on_ready(event)
                case ChildFailed() if event.incarnation == self.incarnation:
                    self.failure = event.reason
                case ChildExited() if event.incarnation == self.incarnation:
                    self._on_exit(event, now)
                case MemorySample() if event.incarnation == self.incarnation:
                    self._on_memory(event.rss, now)
                case CallDone():
                    self._effects.append(Send("", Answer(event.rid, event.payload)))
                case LinkLost():
                    self.failed = self.failed or self.wish is not Wish.CLOSED
                    self._on_command("close", f"the link to the scheduler broke: {event.reason}", GRACE, now)
                case Due():
                    self._on_due(now)
        return self._effects

    @property
    def wish_is_up(self) -> bool:
        """Whether there is to be a worker."""
        return self.wish is Wish.UP

    def deadline(self) -> float | None:
        """When :meth:`handle` is to be called even if nothing happens."""
        return self._due

    def sample_interval(self, rss: int, longest: float) -> float:
        """Seconds until memory is to be looked at again: less than it takes to fill what is left of the limit."""
        if not self.memory_limit or not self.terminate:
            return longest
        left = self.memory_limit * self.terminate - rss
        return min(longest, max(_SHORTEST_INTERVAL, left / _GROWTH))

    def _advance(self, event: ChildEvent) -> None:
        self.state = CHILD.advance(self.state, event, self.name)

    def _start(self, now: float) -> None:
        self._advance(ChildEvent.START)
        self.incarnation += 1
        self._was_up = self._replace = False
        self._cause = Cause.EXIT
        self.worker = self.address = self.reason = self.failure = ""
        self._due = now + self.start_timeout
        self._effects.append(Spawn(self.incarnation))

    def _end(self, cause: Cause, reason: str, now: float, grace: float = GRACE, hard: bool = False) -> None:
        """Have the process end, for the first reason that there was; a shorter time to do so counts."""
        if self.state in (ChildState.STARTING, ChildState.UP):
            self._cause, self.reason = cause, reason
            self._advance(ChildEvent.END)
            self._due = now + grace
            self._effects.append(Signal(self.incarnation, hard))
        elif self.state is ChildState.EXITING and (self._due is None or now + grace < self._due):
            self._due = now + grace

    # -------------------------------------------------------------------------------------------- orders

    def _on_command(self, what: str, reason: str, timeout: float, now: float) -> None:
        if self.wish is Wish.CLOSED and what != "close":
            return
        grace = max(0.0, min(timeout, 1e6) * _ASKING)
        if what == "start":
            self._want_up(now)
        elif what == "restart":
            self._restart(Cause.RESTART, reason or "was restarted", now, min(grace, GRACE))
        elif what == "kill":
            self.wish = Wish.DOWN if self.wish is not Wish.LEAVE else Wish.CLOSED
            self._want_none(Cause.ASKED, reason or "was killed by its nanny, as asked", now, grace)
        elif what == "leave":
            self.wish = Wish.LEAVE
            self._leaves_for_good = True
            if self.state in (ChildState.DOWN, ChildState.BACKOFF, ChildState.GIVEN_UP):
                self._on_command("close", reason, timeout, now)
        elif what == "close":
            self.wish = Wish.CLOSED
            self._want_none(Cause.ASKED, reason or "closed", now, grace)

    def _want_up(self, now: float) -> None:
        if self.wish is not Wish.LEAVE:
            self.wish = Wish.UP
            if self.state in (ChildState.DOWN, ChildState.BACKOFF):
                self._start(now)

    def _want_none(self, cause: Cause, reason: str, now: float, grace: float) -> None:
        self._replace = False
        if self.state is ChildState.BACKOFF:
            self._advance(ChildEvent.EXIT_FOR_GOOD)
            self._due = None
        if self.state not in (ChildState.DOWN, ChildState.GIVEN_UP):
            self._end(cause, reason, now, grace)
        elif self.wish is Wish.CLOSED:
            self._effects.append(Stop(reason, self.failed))

    def _restart(self, cause: Cause, reason: str, now: float, grace: float, hard: bool = False) -> None:
        if self.state in (ChildState.DOWN, ChildState.BACKOFF):
            self._want_up(now)
            return
        self._end(cause, reason, now, grace, hard)
        if self.wish is not Wish.LEAVE:
            self.wish, self._replace = Wish.UP, True

    def _on_message(self, message: Any, now: float) -> None:
        match message:
            case RestartWorker() if message.worker in ("", self.worker) and self.wish is not Wish.CLOSED:
                if message.blame:
                    self._restart(Cause.SILENT, message.reason, now, GRACE, hard=True)
                else:
                    grace = min(message.timeout * _ASKING, GRACE)
                    self._restart(Cause.RESTART, message.reason, now, grace)
            case Close():
                self.failed = self.failed or message.failed
                self._on_command("close", message.reason, GRACE / _ASKING, now)
            case Leave():
                self._on_leave(message, now)
                self._effects.append(Send("", Leaving(message.number)))
            case Call():
                self._effects.append(CallUser(message.rid, message.payload, message.wait))
            case ChangePlugin():
                self._effects.append(InstallPlugin(message.rid, message.name, message.payload))

    def _on_leave(self, message: Leave, now: float) -> None:
        """The scheduler is about to let the worker go for good, or does not any more."""
        if message.on:
            for_good = self._leaves_for_good
            self._on_command("leave", message.reason, GRACE / _ASKING, now)
            self._leaves_for_good = for_good
        elif self.wish is Wish.LEAVE and not self._leaves_for_good:
            self.wish = Wish.UP

    # -------------------------------------------------------------------------------------------- the process

    def _on_ready(self, event: ChildReady) -> None:
        if event.incarnation == self.incarnation and self.state is ChildState.STARTING:
            self._advance(ChildEvent.READY)
            self.worker, self.address = event.worker, event.address
            self._was_up = True
            self._failed_starts = 0
            self._due = None

    def _on_exit(self, event: ChildExited, now: float) -> None:
        asked = self._cause in (Cause.ASKED, Cause.RESTART)
        cause = self._cause
        if cause is Cause.EXIT:
            cause = Cause.START if not self._was_up else Cause.SIGNAL if event.signal is not None else Cause.EXIT
        reason = self.reason or self.failure or describe_exit(event)
        again = self.wish is Wish.UP and (self.reconnect or self._replace)
        self._advance(ChildEvent.EXIT if again else ChildEvent.EXIT_FOR_GOOD)
        self.deaths[cause.value] = self.deaths.get(cause.value, 0) + 1
        told = WorkerDied(
            self.worker, reason, event.running, asked, again, self.address, cause.value, event.peak, event.output,
            event.exitcode, event.signal,
        )  # fmt: skip
        self._effects.append(Send("", told))
        self._due = None
        if again:
            self._start_again(reason, event, now)
        elif self.wish is not Wish.DOWN:
            self.wish = Wish.CLOSED
            if not asked:
                self._log_death(WARNING, reason, event, "it is not started again")
            self._effects.append(Stop(reason, self.failed))

    def _start_again(self, reason: str, event: ChildExited, now: float) -> None:
        self.restarts += 1
        never_up = not self._was_up and not self._replace
        self._failed_starts = self._failed_starts + 1 if never_up else 0
        if self._failed_starts >= self.crash_limit:
            self._advance(ChildEvent.GIVE_UP)
            self.wish = Wish.CLOSED
            self.failed = True
            text = f"worker {self.name} failed to start {self._failed_starts} times in a row: {reason}"
            self._effects += [Log(ERROR, text), Send("", WorkerGaveUp(text)), Stop(text, True)]
            return
        pause = min(_FIRST_PAUSE * 2**self._failed_starts, _LONGEST_PAUSE) if never_up else 0.0
        self._due = now + pause
        if self._replace:
            self._effects.append(Log(INFO, f"worker {self.name} {reason}; restart {self.restarts}"))
        else:
            self._log_death(WARNING, reason, event, f"restart {self.restarts} in {pause:g} s")
        if not pause:
            self._start(now)

    def _log_death(self, level: int, reason: str, event: ChildExited, next: str) -> None:
        lines = [f"worker {self.name} {reason}; {next}", *(f"worker {self.name} said: {line}" for line in event.output)]
        self._effects += [Log(level, line) for line in lines]

    def _on_memory(self, rss: int, now: float) -> None:
        if self.memory_limit and self.terminate and rss > self.memory_limit * self.terminate:
            text = (
                f"was killed by its nanny: it used {rss / 1e6:.0f} MB, over {self.terminate:.0%} of its memory limit "
                f"of {self.memory_limit / 1e6:.0f} MB"
            )
            self._end(Cause.MEMORY, text, now, hard=True)

    def _on_due(self, now: float) -> None:
        if self._due is None or now < self._due:
            return
        self._due = None
        if self.state is ChildState.BACKOFF:
            self._start(now)
        elif self.state is ChildState.STARTING:
            self._end(Cause.START, f"did not start within {self.start_timeout:g} s", now, hard=True)
        elif self.state is ChildState.EXITING:
            self._effects.append(Log(INFO, f"worker {self.name} did not end when asked; it is killed"))
            self._effects.append(Signal(self.incarnation, True))
            self._due = now + GRACE
