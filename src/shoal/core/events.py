"""What the shell tells a core: a closed union of facts, the same for scheduler, worker, nanny and client."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec


class Event(msgspec.Struct, gc=False):
    """Base of all events."""


class LinkOpened(Event):
    """A peer proved the secret."""

    role: str
    peer: str


class LinkLost(Event):
    """A link is gone; whatever was not delivered on it is lost."""

    role: str
    peer: str
    reason: str


class LinkFull(Event):
    """A peer does not read what is said to it: so many bytes are owed, and nothing is to be said that can wait."""

    peer: str
    owed: int


class LinkDrained(Event):
    """There is room again on the link to a peer."""

    peer: str


class Received(Event):
    """Messages of one peer, in the order in which they were sent."""

    peer: str
    messages: list[Any]


class Due(Event):
    """The deadline that the core asked for has come."""


class CallDone(Event):
    """A function asked for with ``CallUser`` returned (a pickled pair of success and value)."""

    rid: int
    to: str
    payload: Any


class Outcome(Event):
    """A thread ended (or skipped) an execution."""

    key: str
    status: str  # "ok" | "error" | "reschedule" | "skipped" | "killed" (nobody wanted it, so its process was ended)
    nbytes: int = 0
    type: str = ""
    start: float = 0.0
    stop: float = 0.0
    value: Any = None
    error: Any = None
    #: Number of the thread, from 0 on; -1 where that is not known.
    thread: int = -1
    #: By how many bytes the process grew meanwhile; 0 where it was too short to tell.
    peak: int = 0


class Outcomes(Event):
    """Executions that ended since the last time."""

    items: list[Outcome]


class FetchDone(Event):
    """A peer answered a fetch; ``failed`` maps keys whose value could not be read to the reason."""

    peer: str
    got: list[tuple[str, int, str]]
    missing: list[str]
    failed: dict[str, str]
    #: Which definition of its key each value was made by; 0 where that is not said.
    editions: dict[str, int] = {}


class FetchFailed(Event):
    """A peer could not be reached, or its link broke before it answered."""

    peer: str
    keys: list[str]
    reason: str


class ValuesLost(Event):
    """Values that were held here cannot be read any more."""

    keys: list[str]


class PutDone(Event):
    """A client put values here: those that the core takes are in the store, the others were refused."""

    client: str
    items: list[tuple[str, int, str]]
    refused: list[str] = []
    number: int = 0


class ChildReady(Event):
    """The worker process of this incarnation is connected to the scheduler."""

    incarnation: int
    worker: str
    address: str
    pid: int


class ChildFailed(Event):
    """The worker process could not start, and said why; its exit follows."""

    incarnation: int
    reason: str


class ChildExited(Event):
    """The process is gone and joined.

    ``running`` are the keys that its threads were in, ``peak`` the most bytes of memory that it had (0: not known),
    ``output`` the last lines that it wrote to stderr.
    """

    incarnation: int
    exitcode: int | None
    signal: int | None
    running: list[str]
    peak: int = 0
    output: list[str] = []


class MemorySample(Event):
    """Resident bytes of the worker process."""

    incarnation: int
    rss: int


class Command(Event):
    """The owner of a nanny wants something.

    ``start``, ``restart``, ``kill`` (and start none until told to), ``leave`` (when the worker goes, go too),
    ``close``. ``timeout`` is in seconds.
    """

    what: str
    reason: str = ""
    timeout: float = 30.0


class Pressure(Event):
    """The memory of this worker is nearly used up, or is so no longer."""

    paused: bool
    reason: str = ""


class Offered(Event):
    """This worker is given resources, or other amounts of them, by name; those that are not named stay."""

    resources: dict[str, float]


class Spilling(Event):
    """Results take more memory than they should, or do no longer; which of them went to disk and came back since."""

    short: bool
    spilled: list[str] = []
    loaded: list[str] = []


class Seceded(Event):
    """The task in this thread left the pool: it does not count as work any more, and another may start."""

    key: str


class Rejoined(Event):
    """The task of this key is back in the pool."""

    key: str


class PluginOffered(Event):
    """A plugin of the scheduler's wants another installed elsewhere (without a payload: removed)."""

    rid: int
    kind: str
    name: str
    payload: Any


class PluginsChanged(Event):
    """The scheduler's own plugins now, by name, with the hooks that each of them has."""

    hooks: dict[str, list[str]]


class Said(Event):
    """The user of a client wants this told to the scheduler; ``records`` are those of the futures it wishes for."""

    message: Any
    records: Sequence[Any] = ()


class Released(Event):
    """The user of a client let go of one future of this record, whose handle is gone from it."""

    record: Any


class Asked(Event):
    """The program itself asks the scheduler for what clients may ask for; it is answered with ``Answered``."""

    message: Any
