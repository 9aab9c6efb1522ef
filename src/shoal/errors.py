"""Every error that shoal raises, in one tree, with the blame in the branch.

::

    ShoalError
    ├── UsageError (ValueError)              the caller's fault, at the call that caused it
    │   ├── ForeignFutureError               a future of another client
    │   └── ConfigurationError               an option or limit that makes no sense
    ├── SerializationError (TypeError)       a function, argument or result that cannot travel
    ├── LinkError (OSError)                  a peer's or the network's fault
    │   ├── LinkClosedError
    │   ├── ConnectError (TimeoutError)      nobody answered: says what was tried, and for how long
    │   └── HandshakeError                   version, secret or role were refused; retrying is useless
    │       └── HandshakeTimeoutError        it took too long; the next attempt may be quicker
    ├── TaskError
    │   ├── KilledWorker                     the workers that ran the task died
    │   ├── NoValidWorkerError               no worker could run it for too long
    │   ├── LostActorError (ValueError)      the worker that held it is gone
    │   ├── TaskTimeoutError (TimeoutError)  it took too long, and was ended
    │   ├── TaskProcessDied                  the process that it had of its own ended by itself
    │   ├── TaskThreadError                  its thread failed before or after it ran
    │   ├── LostDataError                    scattered data whose last copy is gone
    │   └── FutureCancelledError (CancelledError)
    ├── WorkerStartTimeoutError (TimeoutError)  not enough workers in time
    ├── StartError                           a process did not come up
    └── InternalError                        our bug: carries the story that led to it
        ├── IllegalTransition
        └── InvariantViolation

The message of each says what happened, to which key, on which worker, and what to do.
"""

from __future__ import annotations

from concurrent.futures import CancelledError
from typing import Any


class ShoalError(Exception):
    """Base of all errors of shoal."""


class UsageError(ShoalError, ValueError):
    """A call was made with arguments that cannot work."""


class ForeignFutureError(UsageError):
    """A future of another client, or of one that is closed, was used as an input."""


class ConfigurationError(UsageError):
    """An option, limit or file makes no sense or is not safe to use."""


class ClosedClientError(ShoalError):
    """The client is closed. Make a new one to go on."""


class SerializationError(ShoalError, TypeError):
    """A function, an argument or a result cannot be turned into bytes, or back."""


class LinkError(ShoalError, OSError):
    """A connection to another process failed."""


class LinkClosedError(LinkError):
    """The connection was closed while an answer was awaited."""


class ConnectError(LinkError, TimeoutError):
    """Nobody could be reached at an address in time."""


class HandshakeError(LinkError):
    """The other side refused this one, or could not prove that it belongs to the cluster."""


class HandshakeTimeoutError(HandshakeError, TimeoutError):
    """The other side did not finish the handshake in time."""


class TaskError(ShoalError):
    """A task could not give its result."""


class KilledWorker(TaskError):
    """The workers that ran a task died, more often than ``distributed.scheduler.allowed-failures``."""

    def __init__(self, task: str, deaths: list[str] | None = None, allowed_failures: int = 0) -> None:
        self.task = task
        #: One line for each death: worker, reason, what else ran there.
        self.deaths = list(deaths or [])
        self.allowed_failures = allowed_failures
        super().__init__(task, self.deaths, allowed_failures)

    def __str__(self) -> str:
        lines = "".join(f"\n  - {death}" for death in self.deaths)
        told = " ".join(self.deaths)
        advice = "".join(f"\n{text}" for words, text in _ADVICE if any(word in told for word in words))
        brought = self.deaths and all("were brought together" in death for death in self.deaths)
        was = "was to run" if brought else "was running"
        return (
            f"task {self.task!r} {was} on {len(self.deaths)} workers when they died "
            f"(allowed-failures is {self.allowed_failures}):{lines}{advice}\n"
            "To find out more, run it alone with Client(processes=False) or in a plain interpreter; to try more often, "
            "set distributed.scheduler.allowed-failures."
        )


#: What to try, where deaths are described with one of these words.
_ADVICE = (
    (("memory limit",), "It, or what ran beside it, needs more memory than a worker has: raise memory_limit, run fewer "
     "threads in a worker, or split it."),
    (("not by its nanny",), "If the kernel ended it for want of memory, the limits of all workers of that machine are "
     "too high together: lower memory_limit, or start fewer workers."),
    (("native code",), "A library that it calls crashed: the last words show where, if Python could tell."),
    (("worker-ttl",), "It held the interpreter's lock for so long that the worker could say nothing: raise "
     "distributed.scheduler.worker-ttl, or have the native code let go of the lock."),
    (("exited with status",), "Something that it calls ends the process (os._exit, or exit in native code)."),
)  # fmt: skip


class NoValidWorkerError(TaskError):
    """No worker could run the task for ``distributed.scheduler.no-workers-timeout``."""


class LostActorError(TaskError, ValueError):
    """The worker that held an actor is gone, or everybody has let go of it."""


class LostDataError(TaskError):
    """Scattered data, which has no recipe, lost its last copy."""


class TaskTimeoutError(TaskError, TimeoutError):
    """The task took longer than its ``task_timeout``, and was ended."""


class TaskProcessDied(TaskError):
    """The process that a task had of its own (``killable=True``) ended by itself; its worker goes on."""


class TaskThreadError(TaskError):
    """The thread of a task failed outside of the task's own function; another thread has taken its place."""


class FutureCancelledError(TaskError, CancelledError):
    """The future was cancelled, so it has no result."""

    def __init__(self, key: Any, reason: str | None = None) -> None:
        self.key = key
        self.reason = reason or "cancelled"
        super().__init__(key, self.reason)

    def __str__(self) -> str:
        return f"{self.key!r} was cancelled: {self.reason}"


class Reschedule(Exception):
    """Raise this in a task to have it run again, perhaps on another worker."""


class WorkerStartTimeoutError(ShoalError, TimeoutError):
    """Not enough workers were there in time."""

    def __init__(self, available_workers: int, expected_workers: int, timeout: float) -> None:
        self.available_workers, self.expected_workers, self.timeout = available_workers, expected_workers, timeout
        super().__init__(available_workers, expected_workers, timeout)

    def __str__(self) -> str:
        return (
            f"{self.available_workers} of {self.expected_workers} workers are running after {self.timeout:g} s; "
            "their logs (cluster.get_logs, or what shoal worker prints) say why"
        )


class StartError(ShoalError):
    """A process of the cluster did not come up; the message carries the cause it gave."""


class InternalError(ShoalError):
    """A bug in shoal. Please report it with the story that it carries."""


class IllegalTransition(InternalError):
    """A state machine was sent an event that its table does not hold for its state."""

    def __init__(self, machine: str, subject: str, state: str, event: str, story: list[Any] | None = None) -> None:
        self.machine, self.subject, self.state, self.event = machine, subject, state, event
        self.story = story or []
        super().__init__(machine, subject, state, event, self.story)

    def __str__(self) -> str:
        told = "".join(f"\n  {row}" for row in self.story[-20:])
        return f"{self.machine} {self.subject!r}: no transition for {self.event} in state {self.state}{told}"


class InvariantViolation(InternalError):
    """An index disagrees with the records that it was made from."""
