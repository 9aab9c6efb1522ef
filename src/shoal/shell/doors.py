"""The door between shoal and code of users that runs outside of a task's own function.

Sizes, pickles, texts of errors, hooks, callbacks, handlers: each of these is code of somebody else, and may raise
anything (``SystemExit`` and ``KeyboardInterrupt`` too), recurse without end, or return nonsense. It is called through
:func:`call` or :func:`wait`, or within a ``try`` that ends in :func:`report`; what it raises is counted and logged, and
whoever called goes on with the value that stands for a failure. :data:`PLACES` lists every such place;
``docs/user-code.md`` is made of it.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import signal
import threading
import traceback
from collections import Counter
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import Any, Final, NamedTuple

from shoal.checks import text
from shoal.shell import standard

logger = logging.getLogger("shoal.doors")

#: Failures at one place that are logged one by one; past that, one a second is.
_EACH: Final = 20
_BETWEEN: Final = 1.0
_MOST_TEXT: Final = 20_000
_MOST_NAME: Final = 200


class Place(NamedTuple):
    """Where code of users runs outside of tasks."""

    #: Which code that is.
    code: str
    #: The process and the thread that run it.
    runs: str
    #: What follows when it fails.
    then: str


#: By their names, as logs and counters have them.
PLACES: Final[dict[str, Place]] = {
    "size": Place(
        "`__sizeof__`, `nbytes`, `__getattr__`, what is registered with `dask.sizeof`",
        "worker or task process, the task's thread",
        "the size of the bare object is taken",
    ),
    "pickle": Place(
        "`__reduce__`, `__reduce_ex__`, `__getstate__`, `__getnewargs__`, buffers",
        "wherever a value travels or is spilled",
        "`SerializationError` for whoever asked for the value; a value that was to be spilled stays in memory",
    ),
    "unpickle": Place(
        "`__setstate__`, constructors, modules that are imported when arguments are read",
        "the task's thread; the caller's thread in a client",
        "the task fails with it; a client raises it to the caller",
    ),
    "error": Place(
        "`__str__`, `__repr__`, `args`, `__cause__`, pickling and unpickling of an exception",
        "wherever an exception travels or is logged",
        "the name of its class and the traceback travel as text",
    ),
    "type": Place("`__class__`, a metaclass's `__name__`", "the task's thread", "the real type is asked"),
    "end of a value": Place(
        "`__del__`, callbacks of weak references",
        "the thread that lets go of the value",
        "Python reports it to `sys.unraisablehook`",
    ),
    "key": Place(
        "`__dask_tokenize__`, `__hash__`, `__eq__`, `__bool__`, `__repr__` of arguments; `__dask_graph__`, "
        "`__dask_keys__`, `__dask_postcompute__`",
        "client, the caller's thread",
        "the call raises it; nothing was submitted",
    ),
    "function": Place(
        "functions of `Client.run`, `run_on_scheduler`, `run_coroutine`, `Worker.run`, `Nanny.run`",
        "worker, nanny or scheduler, the event loop",
        "it is the answer to the call",
    ),
    "actor": Place("methods and attributes of actors", "worker, the actor's thread", "it is the answer to the call"),
    "hook": Place(
        "hooks of plugins of schedulers, workers and nannies: `start`, `setup`, `teardown`, `close`, `before_close`, "
        "`transition`, `add_worker`, `remove_worker`, `update_graph`, `log_event`, `valid_workers_downscaling`, …",
        "scheduler, worker or nanny, the event loop",
        "of `setup` and `start`: the plugin is not installed, and whoever installed it is told; of others: it is "
        "logged, and the next plugin's hook is called",
    ),
    "policy": Place(
        "policies of the active memory manager", "scheduler, the event loop", "it is logged; the other policies run"
    ),
    "preload": Place(
        "modules of `preload`, their `dask_setup` and `dask_teardown`",
        "scheduler, worker or nanny, the event loop",
        "the start fails with its words; a teardown is logged",
    ),
    "metric": Place("`Worker(metrics=…)`", "worker, the event loop", "the heartbeat has None for it"),
    "callback": Place(
        "`Future.add_done_callback`, `loop.add_callback`, callbacks of progress bars",
        "client, a thread for callbacks or the event loop",
        "it is logged; the next callback is called",
    ),
    "handler": Place(
        "handlers of `subscribe_topic`; what `shoal.print` and `shoal.warn` write to",
        "client, a thread for callbacks or the event loop",
        "it is logged; the next event is handled",
    ),
    "log": Place("handlers, filters and formatters of `logging`", "whichever thread logs", "the line goes to stderr"),
    "adaptive": Place(
        "methods of subclasses of `Adaptive`, `worker_key`", "client, the event loop", "it is tried again later"
    ),
    "cluster": Place(
        "`start` and `close` of the objects of a `SpecCluster`",
        "client, the event loop",
        "of `start`: the call that waits raises it; of `close`: it is logged, the others are ended all the same",
    ),
    "source": Place(
        "`__loader__.get_source` of a module, asked for by the profiler",
        "worker, the profiler's thread",
        "it is logged; the profiler looks again",
    ),
    "bookkeeping": Place(
        "no code of users: what a task's thread does before and after the task (memory, profile, spilling)",
        "worker, the task's thread",
        "the task keeps its result, or fails with the words if there cannot be one; the thread goes on",
    ),
    "program": Place(
        "no code of users: asyncio tasks and threads of shoal's own",
        "every process",
        "it is logged; whoever waits is told, the thread begins anew, or the program ends with a status other than 0",
    ),
}

#: What the log calls some of them.
_CALLED: Final = {
    "adaptive": "adapting", "callback": "a callback", "handler": "the handler of an event",
    "hook": "a hook of a plugin", "metric": "a metric", "preload": "the teardown of a preload",
    "source": "a look at the stacks of tasks",
}  # fmt: skip

#: Failures by place, since this process began.
COUNTS: Final[Counter[str]] = Counter()
_logged: dict[str, tuple[float, int]] = {}


def call(place: str, function: Callable[..., Any], *args: Any, otherwise: Any = None, **kwargs: Any) -> Any:
    """Call a user's function; what it raises is reported, and ``otherwise`` is returned then."""
    try:
        return function(*args, **kwargs)
    except BaseException as error:
        if is_for_us(error):
            raise
        report(place, error)
        return otherwise


async def wait(place: str, function: Callable[..., Any], *args: Any, otherwise: Any = None, **kwargs: Any) -> Any:
    """As :func:`call`, and await what it returns if that can be awaited."""
    try:
        return await settled(function(*args, **kwargs))
    except BaseException as error:
        if is_for_us(error, awaiting=True):
            raise
        report(place, error)
        return otherwise


async def settled(value: Any) -> Any:
    """``value``, or what comes of it if it can be awaited.

    It is awaited in an asyncio task of its own: code that cancels the task which runs it cancels itself alone.
    """
    if not inspect.isawaitable(value):
        return value
    found, error = await asyncio.get_running_loop().create_task(_outcome(value))
    if error is not None:
        raise error
    return found


async def _outcome(awaitable: Awaitable[Any]) -> tuple[Any, BaseException | None]:
    """What comes of it, or what it raises: SystemExit and KeyboardInterrupt out of a task would end the loop."""
    try:
        return await awaitable, None
    except BaseException as error:
        return None, error


def is_for_us(error: BaseException, awaiting: bool = False) -> bool:
    """Whether an exception that came out of a user's code is meant for its caller.

    That is so for Ctrl-C in the main thread of a program that does not handle the signal itself, for the cancellation
    of the asyncio task that called it, and (where that is ``awaiting``) if its coroutine is being closed.
    """
    if isinstance(error, KeyboardInterrupt):
        mine = threading.current_thread() is threading.main_thread()
        return mine and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if isinstance(error, asyncio.CancelledError):
        task = _current_task()
        return task is not None and task.cancelling() > 0
    return awaiting and isinstance(error, GeneratorExit) and _current_task() is None


def _current_task() -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None


def report(place: str, error: BaseException, what: str = "") -> None:
    """Count a failure of code of users, and log it with its traceback; never raises.

    Parameters
    ----------
    place
        One of :data:`PLACES`.
    what
        What failed, for the log; what the place is called by default.
    """
    COUNTS[place] += 1
    now, (last, skipped) = monotonic(), _logged.get(place, (0.0, 0))
    if COUNTS[place] > _EACH and now - last < _BETWEEN:
        _logged[place] = (last, skipped + 1)
        return
    _logged[place] = (now, 0)
    more = f" (and {skipped} more since the last line)" if skipped else ""
    say(logging.ERROR, f"{what or _CALLED.get(place, place)} failed{more}: {described(error)}")


def say(level: int, line: str) -> None:
    """Log a line, whatever handlers and filters users have installed."""
    try:
        logger.log(level, "%s", line)
    except BaseException as error:  # of a logger that is not guarded
        told = f"{line}\n(it could not be logged: {named(error)})\n"
        standard.pass_on(told.encode(errors="backslashreplace"))


_NAME: Final = type.__dict__["__name__"].__get__
_TRACEBACK: Final = BaseException.__dict__["__traceback__"].__get__


def named(value: Any) -> str:
    """The name of a value's real type, as it can travel; no code of users runs."""
    return text(_NAME(type(value)), _MOST_NAME)


class Guarded(logging.Logger):
    """A logger whose caller goes on whatever handlers, filters and formatters that users have installed raise."""

    def handle(self, record: logging.LogRecord) -> None:
        try:
            super().handle(record)
        except BaseException as error:
            if is_for_us(error):
                raise
            COUNTS["log"] += 1
            line = f"{record.levelname} {record.name}: {record.msg} {record.args}\n(not logged: {text_of(error)})\n"
            standard.pass_on(line.encode(errors="backslashreplace"))


#: All loggers that shoal itself logs with.
LOGGERS: Final = (
    "shoal", "shoal.adaptive", "shoal.client", "shoal.cluster", "shoal.compat", "shoal.deploy", "shoal.doors",
    "shoal.driver", "shoal.link", "shoal.nanny", "shoal.peers", "shoal.plugins", "shoal.scheduler", "shoal.scratch",
    "shoal.worker", "shoal.worker.memory",
)  # fmt: skip


def _guard() -> None:
    for name in LOGGERS:
        found = logging.getLogger(name)
        if type(found) is logging.Logger:  # else it is of a class that the user has chosen
            found.__class__ = Guarded


_guard()


def text_of(error: BaseException) -> str:
    """What an exception says of itself, with its type; its name alone where it cannot say anything."""
    try:
        return text(f"{named(error)}: {error}", _MOST_TEXT)
    except BaseException as cause:
        return f"{named(error)} (which cannot say what it is: {named(cause)})"


def described(error: BaseException) -> str:
    """The text of an exception and its traceback, for a log."""
    try:
        lines = "".join(traceback.format_exception(type(error), error, _TRACEBACK(error)))
    except BaseException:
        lines = ""  # its own attributes raise: the text says which it is
    return f"{text_of(error)}\n{lines[-_MOST_TEXT:]}".rstrip()
