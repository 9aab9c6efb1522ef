"""What a core may ask of the world: a closed union of values, carried out by the shell in the order of the list.

Order: effects are carried out one after another, and all of a list before the next event is handled. A crash between
two of them is a crash of the whole process, so what must survive it is told to another process first. ``Send`` never
blocks; what cannot be sent because the link is gone is dropped there, and the core hears ``LinkLost`` for it.
"""

from __future__ import annotations

from typing import Any

import msgspec


class Effect(msgspec.Struct, gc=False):
    """Base of all effects."""


class Send(Effect):
    """Put a message on the link to a peer of the scheduler's, or to the scheduler (``to=""``)."""

    to: str
    message: Any


class CloseLink(Effect):
    """End the link to a peer, after what was sent has gone out."""

    to: str
    reason: str


class Log(Effect):
    """A line for the log; levels are those of :mod:`logging`."""

    level: int
    text: str


class Run(Effect):
    """Execute a task in a thread. All its inputs are held."""

    key: str
    fn: str
    payload: Any
    deps: list[str]
    inline: bool
    executor: str = ""
    apart: float | None = None


class CancelRun(Effect):
    """Do not start these if no thread has begun them yet; they are reported all the same.

    ``kill``: end those that run in processes of their own.
    """

    keys: list[str]
    kill: bool = False


class Fetch(Effect):
    """Ask a peer for copies."""

    peer: str
    addresses: list[str]
    keys: list[str]
    max_bytes: int


class HandOver(Effect):
    """Send values to the scheduler (``Given``), for one who cannot reach this worker."""

    rid: int
    keys: list[str]
    max_bytes: int


class TakeOver(Effect):
    """Keep values of a peer that came by way of the scheduler, as if it had been reached (``FetchDone``)."""

    peer: str
    items: dict[str, Any]
    missing: list[str]
    errors: dict[str, str]
    editions: dict[str, int]


class Drop(Effect):
    """Let go of values."""

    keys: list[str]


class Functions(Effect):
    """Keep (or, for None, let go of) functions in their pickled form."""

    functions: dict[str, Any]


class CallUser(Effect):
    """Run a user's function now, outside of the task queue, and answer with its result."""

    rid: int
    payload: Any
    wait: bool
    to: str = ""


class InstallPlugin(Effect):
    """Install a plugin in this program, or (without a payload) remove it, and answer as for :class:`CallUser`."""

    rid: int
    name: str
    payload: Any
    to: str = ""


class Notify(Effect):
    """Call a hook of the scheduler's plugins."""

    hook: str
    args: tuple[Any, ...]


class EventLogged(Effect):
    """An event of a topic that this client subscribed to."""

    topic: str
    msg: Any
    when: float


class Stop(Effect):
    """End this program; ``failed``: not because anybody wanted it to."""

    reason: str
    failed: bool = False


class Spawn(Effect):
    """Start the worker process number ``incarnation``."""

    incarnation: int


class Signal(Effect):
    """Ask the process to end (``hard=False``), or end it (``hard=True``)."""

    incarnation: int
    hard: bool


class Settled(Effect):
    """These keys of a client are done: wake who waits for them."""

    records: list[Any]


class Answered(Effect):
    """The scheduler answered a client's request; ``rid=0`` means that no request will be answered any more."""

    rid: int
    value: Any
    error: str | None


class Registered(Effect):
    """The scheduler knows this client now."""


WARNING, INFO, DEBUG, ERROR = 30, 20, 10, 40
