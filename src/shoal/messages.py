"""The protocol: every message on every wire, one closed tagged union for each direction.

How to add a message: write a struct here, put it into the union of its direction, answer it in the reactor of the
side that receives it (the ``match`` there is exhaustive and mypy tells), and cover it in
``tests/unit/test_messages.py`` (a round trip over the whole union runs by itself). New fields of an existing message
need a default, at the end. A change that an older peer would misread raises :data:`PROTOCOL_VERSION`.

Payloads (:data:`Payload`) are user objects already turned into bytes: plain ``bytes`` where they are small, a
:class:`Blob` where large buffers travel beside the message. Nobody between the two ends looks inside.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec

from shoal.fields import (
    MOST,
    Amount,
    Count,
    Finite,
    Key,
    MaybePayload,
    Name,
    Payload,
    Priority,
    Size,
    Text,
    Thread,
    Threads,
    Time,
)  # fmt: skip
from shoal.fields import Blob as Blob  # noqa: PLC0414 - it is exported from here

#: Refused at the handshake where it differs.
PROTOCOL_VERSION = 2


class Message(msgspec.Struct, array_like=True, tag=True, gc=False):
    """Base of what stands by itself in a frame."""


class Item(msgspec.Struct, array_like=True, gc=False):
    """Base of what stands inside a message."""


# ---------------------------------------------------------------------------------------------- handshake


class Hello(Message):
    """First word of whoever dials; ``channel`` names a conversation that outlives the connection, if it is to be one.

    ``heard`` is how much of it was heard, where it goes on (see ``core/channel.py``), and 0 where it begins.
    ``seal`` asks for frames that are sealed (``core/sealing.py``); ``process`` is the sender's own, where the kernel
    tells the other end, too.
    """

    version: int
    role: str
    id: str
    nonce: bytes
    channel: bytes = b""
    heard: int = 0
    seal: bool = False
    process: int = 0


class Challenge(Message):
    """The listener's answer: who it is, and proof that it knows the secret. ``seal`` and ``process`` as in a hello."""

    version: int
    role: str
    id: str
    nonce: bytes
    proof: bytes
    seal: bool = False
    process: int = 0


class Proof(Message):
    """The dialler's proof, and whether what follows is sealed."""

    proof: bytes
    seal: bool = False


class Welcome(Message):
    """The link is open.

    ``heard`` is how much the listener has heard of a conversation that goes on, ``keeps`` whether it outlives this
    connection.
    """

    heard: int = 0
    keeps: bool = False


class Refused(Message):
    """The handshake failed; the link is closed next."""

    reason: str


Handshake = Hello | Challenge | Proof | Welcome | Refused

# ---------------------------------------------------------------------------------------------- items


class Options(Item):
    """What a submission asks for beyond running the function; shared by all tasks of one message.

    ``apart``: each in a process of its own, for so many seconds at most (0: without limit). ``span``, ``span_ids``:
    names and ids of the spans around it, the outermost first.
    """

    priority: Priority = 0
    retries: Count = 0
    workers: list[Name] | None = None
    allow_other_workers: bool = False
    resources: dict[Name, Amount] | None = None
    executor: Name = ""
    actor: bool = False
    apart: Time | None = None
    span: list[Name] | None = None
    span_ids: list[Name] | None = None


class TaskSpec(Item):
    """One task as a client submits it. ``fn`` names a function sent before, or is empty for a graph node.

    ``options`` are those of this task, where they are not those of all.
    """

    key: Key
    fn: Name
    payload: Payload
    deps: list[Key]
    order: int = 0
    options: Options | None = None


class Dep(Item):
    """An input of a task: its size, the workers that hold it, and which definition of the key is meant."""

    key: Key
    nbytes: Size
    holders: list[Name]
    edition: int = 0


class ComputeTask(Item):
    """One task as a worker gets it. ``inline`` asks that a small result travels with the report.

    ``edition`` is a digest of the definition: of the function, the arguments, and the editions of the inputs. A value
    that was made by another definition of the key is never taken for that of this one. Scattered data has 0.
    """

    key: Key
    attempt: Count
    fn: Name
    payload: Payload
    deps: list[Dep]
    priority: tuple[int, int, int]
    inline: bool = False
    resources: dict[Name, Amount] | None = None
    edition: int = 0
    executor: Name = ""
    apart: Time | None = None


class TaskDone(Item):
    """One finished execution, or a value that was already here when it was asked for.

    ``peak`` is by how many bytes its process grew meanwhile, as far as that was seen.
    """

    key: Key
    attempt: Count
    nbytes: Size
    type: Name
    start: Time
    stop: Time
    value: MaybePayload = None
    thread: Thread = -1
    peak: Count = 0


class KeyInfo(Item):
    """A value and its size."""

    key: Key
    nbytes: Size
    type: Name = ""
    edition: int = 0


class Done(Item):
    """What a client hears of a finished key; ``value`` where the result is small."""

    key: Key
    nbytes: Size
    type: Name
    value: MaybePayload = None
    peak: Count = 0


class TaskError(Item):
    """A failure as it travels: pickled where that worked, and always as text.

    ``before`` is what it was raised from (``explicit``), or while that was handled.
    """

    exception: MaybePayload
    traceback: MaybePayload
    text: Text
    traceback_text: Text = ""
    before: TaskError | None = None
    explicit: bool = False


# ---------------------------------------------------------------------------------------------- both ways


class Answer(Message):
    """The reply to the request ``rid``."""

    rid: int
    value: Any = None
    error: Text | None = None


class Give(Message):
    """Values for one who cannot reach this worker; to be answered with :class:`Given`."""

    rid: int
    keys: list[Key]
    max_bytes: Count = 0


class Carry(Give):
    """A worker or a client cannot reach a holder: the scheduler is to bring these values of it."""

    holder: Name = ""


class Bye(Message):
    """Said before a link is closed on purpose, so that it is not taken for a failure; or (``failed``) it is one."""

    reason: Text = ""
    failed: bool = False


class Leaving(Message):
    """The order :class:`Leave` of this number was heard, and all that was said before it is said."""

    number: int


class AskRetirement(Message):
    """Move what only this worker holds, then let it go: ``reason`` is why.

    ``patience`` is how long (seconds) running tasks may take to end; then they run elsewhere. With ``restart`` another
    process takes its place.
    """

    reason: Text
    patience: Finite | None = None
    restart: bool = False


class LogEvent(Message):
    """Keep an event under some topics, and tell who subscribed to them; ``when`` in seconds since 1970."""

    topics: list[Name]
    msg: Any
    when: Time


# ---------------------------------------------------------------------------------------------- client → scheduler


class RegisterClient(Message):
    """First message of a client."""

    name: Name = ""


class FireAndForget(Message):
    """Run these to their end, whoever lets go of them."""

    keys: list[Key]


class Submit(Message):
    """Tasks, and those of their keys that the client wants.

    ``fifo`` is in seconds: a submission that comes so soon after the one before is of the same age, as
    far as the order of tasks goes.

    ``wish`` counts what a client wished for: news that were sent before the scheduler had heard of a wish say nothing
    about it, and are told again after it.

    ``more``: this is a piece, and the next message of this client goes on with it. Nothing is done before the last
    piece is there.
    """

    tasks: list[TaskSpec]
    functions: dict[Name, Payload]
    options: Options
    wants: list[Key]
    wish: int = 0
    fifo: Time = 0.0
    more: bool = False


class Want(Message):
    """Interest in keys that exist already (a future that came out of a pickle)."""

    keys: list[Key]
    wish: int = 0


class Unwant(Message):
    """The client let go of its last future of these keys."""

    keys: list[Key]


class DropFunctions(Message):
    """The sender will not refer to these functions again without sending them anew."""

    fns: list[Name]


#: Why a future is cancelled, where whoever did it gave no reason.
CANCELLED: Final = "cancelled by a client"


class Cancel(Message):
    """Cancel keys; ``force`` overrides the interest of other clients."""

    keys: list[Key]
    force: bool = False
    reason: Text | None = None


class Retry(Message):
    """Run erred keys again. It is a wish for them, too: how they stand is told after it."""

    keys: list[Key]
    wish: int = 0


class Query(Message):
    """A question about the scheduler's state; see ``core/scheduler/info.py`` for what can be asked."""

    rid: int
    what: Name
    args: dict[str, Any]


class RunFunction(Message):
    """Call a function outside of scheduling: on workers (None: all), on nannies, or on the scheduler itself."""

    rid: int
    payload: Payload
    target: Name = "workers"
    workers: list[Name] | None = None
    wait: bool = True


class Restart(Message):
    """Forget all tasks and restart all workers; or, with ``workers``, restart those and forget nothing.

    The answer to the second says for each address ``OK``, ``timed out``, ``removed`` or why not.
    """

    rid: int
    timeout: Finite
    wait_for_workers: bool = True
    workers: list[Name] | None = None


class RegisterPlugin(Message):
    """Keep a plugin for all workers, nannies or the scheduler (``kind``), there now or later; None: remove it.

    Answered once those that are there have installed it; ``idempotent``: one of that name that is there stays.
    """

    rid: int
    kind: Name
    name: Name
    payload: MaybePayload = None
    idempotent: bool = False


class Subscribe(Message):
    """Tell this client of each event of a topic from now on, or (``on=False``) no more."""

    topic: Name
    on: bool = True


class Retire(Message):
    """Have workers leave, once what only they hold is elsewhere.

    ``workers`` are addresses, names, hosts or ids; without them, those that are needed least are taken, by the
    ``criteria`` of ``core/scheduler/scaling.py``. Answered once all have left, or stay: ``{"retired": {address: …},
    "kept": {address: why}}``. ``close``: their processes end; ``remove``: the scheduler forgets them; ``force``: they
    go even where data is lost by it; ``patience`` as for :class:`AskRetirement`.
    """

    rid: int
    workers: list[Name] | None = None
    criteria: dict[str, Any] = msgspec.field(default_factory=dict)
    close: bool = True
    remove: bool = True
    force: bool = False
    patience: Finite | None = None
    reason: Text = ""


class Replicate(Message):
    """Have each key on ``count`` of ``workers`` (None: on all of them); answered with what could not be done."""

    rid: int
    keys: list[Key]
    count: Annotated[int, msgspec.Meta(ge=1, le=MOST)] | None = None
    workers: list[Name] | None = None
    branching: Annotated[int, msgspec.Meta(ge=1, le=MOST)] = 2


class Rebalance(Message):
    """Move ``keys`` (None: all) between ``workers`` until each has its share of memory; answered with figures."""

    rid: int
    keys: list[Key] | None = None
    workers: list[Name] | None = None


class ManageMemory(Message):
    """Have the active memory manager ``start``, ``stop``, ``run_once``, or say whether it is ``running``."""

    rid: int
    what: Name


class Meet(Message):
    """What clients do with each other by way of the scheduler; ``what`` is one of ``core/scheduler/meeting.py``.

    ``payload`` is a value that is left there, with ``keys`` of the futures inside of it.
    """

    rid: int
    what: Name
    name: Name
    args: dict[str, Any]
    payload: MaybePayload = None
    keys: list[Key] = msgspec.field(default_factory=list)


class Took(Message):
    """The client wants the futures that it was given with the answer to this request."""

    rid: int


class Withdraw(Message):
    """The client does not wait for the answer to this request any more."""

    rid: int


class Shutdown(Message):
    """Close the workers, then the scheduler."""

    rid: int


FromClient = (
    RegisterClient
    | Carry
    | Submit
    | FireAndForget
    | Want
    | Unwant
    | DropFunctions
    | Cancel
    | Retry
    | Query
    | RunFunction
    | Restart
    | RegisterPlugin
    | Subscribe
    | LogEvent
    | Retire
    | Replicate
    | Rebalance
    | ManageMemory
    | Meet
    | Took
    | Withdraw
    | Shutdown
    | Bye
)

# ---------------------------------------------------------------------------------------------- scheduler → client


class ClientRegistered(Message):
    """The scheduler knows the client now."""

    scheduler_id: Name
    settings: dict[str, Any]


class KeysDone(Message):
    """These keys are in memory. ``wish``, here and below, is the last wish of the client that had been heard."""

    items: list[Done]
    wish: int = 0


class KeyErred(Message):
    """A key failed; ``origin`` is the key whose failure caused it."""

    key: Key
    origin: Key
    error: TaskError
    wish: int = 0


class KilledTask(Message):
    """A key failed because the workers that ran it died."""

    key: Key
    origin: Key
    deaths: list[Name]
    allowed_failures: int
    wish: int = 0


class KeysCancelled(Message):
    """These keys will not come, and why. ``lost``: scattered data whose last copy is gone."""

    keys: list[Key]
    reason: Text
    lost: bool = False
    wish: int = 0


class KeysRestarted(Message):
    """These keys were done or erred and are being computed again."""

    keys: list[Key]
    wish: int = 0


class Logged(Message):
    """An event of a topic that the client subscribed to."""

    topic: Name
    msg: Any
    when: Time


class Warned(Message):
    """What a user should know about something that they asked for."""

    text: Text


ToClient = (
    ClientRegistered | KeysDone | KeyErred | KilledTask | KeysCancelled | KeysRestarted | Warned | Logged | Answer | Bye
)

# ---------------------------------------------------------------------------------------------- worker → scheduler


class RegisterWorker(Message):
    """First message of a worker."""

    name: Name
    slot: Name
    addresses: Annotated[list[Name], msgspec.Meta(min_length=1)]
    nthreads: Threads
    memory_limit: Count
    pid: Count
    host: Name
    local_directory: Name = ""
    resources: dict[Name, Amount] | None = None
    executors: dict[Name, Threads] | None = None


class Finished(Message):
    """Executions that succeeded."""

    items: list[TaskDone]


class Failed(Message):
    """An execution that raised."""

    key: Key
    attempt: Count
    start: Time
    stop: Time
    error: TaskError
    thread: Thread = -1
    peak: Count = 0


class Rescheduled(Message):
    """An execution that raised ``Reschedule``."""

    key: Key
    attempt: Count


class LongRunning(Message):
    """An execution that left the pool of threads: the worker may be given others in its place."""

    key: Key
    attempt: Count


class StealAnswer(Message):
    """Whether this worker gave a task up that it was asked for, or has it in a thread, or done."""

    key: Key
    attempt: Count
    granted: bool


class WorkerStatus(Message):
    """This worker takes no tasks for now, or takes some again, and why."""

    paused: bool
    reason: Text = ""


class WorkerResources(Message):
    """This worker has other resources than before: all of them, by name."""

    resources: dict[Name, Amount]


class GivenBack(Message):
    """Assignments (key and number) that this worker will not carry out: no thread had them."""

    items: list[tuple[Key, Count]]


class Freed(Message):
    """The threads of these assignments, which were taken back, are free now, or were never taken."""

    attempts: list[Count]


class AddKeys(Message):
    """Copies that this worker now holds."""

    items: list[KeyInfo]


class DataPut(Message):
    """Data that a client scattered to this worker; a size of -1: it was not taken, there is a task of that name.

    Answered with :class:`PutNoted` and the same ``number``.
    """

    client: Name
    items: list[KeyInfo]
    number: int = 0


class Missing(Message):
    """A copy that could not be had: who said no, and who could not be reached."""

    key: Key
    absent: list[Name]
    unreachable: list[Name]


class Given(Message):
    """The answer to :class:`Give`, and to :class:`Carry` of a worker; ``reason``: why there are no values."""

    rid: int
    items: dict[Key, Payload] = msgspec.field(default_factory=dict)
    missing: list[Key] = msgspec.field(default_factory=list)
    errors: dict[Key, Text] = msgspec.field(default_factory=dict)
    editions: dict[Key, int] = msgspec.field(default_factory=dict)
    reason: Text = ""


class NotCopied(Message):
    """A copy that was asked for with :class:`AcquireCopies` will not come; ``broken``: the value cannot travel."""

    key: Key
    reason: Text
    broken: bool = False


class Heartbeat(Message):
    """The worker is alive; how it is."""

    metrics: dict[str, Any]


FromWorker = (
    RegisterWorker
    | Finished
    | Failed
    | Rescheduled
    | LongRunning
    | StealAnswer
    | WorkerStatus
    | WorkerResources
    | GivenBack
    | Freed
    | AddKeys
    | DataPut
    | Missing
    | Carry
    | Given
    | NotCopied
    | Leaving
    | AskRetirement
    | Heartbeat
    | LogEvent
    | Answer
    | Bye
)

# ---------------------------------------------------------------------------------------------- scheduler → worker


class WorkerRegistered(Message):
    """The scheduler knows the worker now; ``plugins`` are to be installed, in order, before anything runs."""

    scheduler_id: Name
    heartbeat_interval: Time
    plugins: dict[Name, Payload] = msgspec.field(default_factory=dict)


class WorkerRejected(Message):
    """This worker must end, and must not come back as it is."""

    reason: Text


class Compute(Message):
    """Tasks to compute, the functions they need that were not sent before, and peers not named before."""

    tasks: list[ComputeTask]
    functions: dict[Name, Payload]
    peers: dict[Name, list[Name]]


class FreeKeys(Message):
    """Drop these: the task, the copy, both. What runs is let run and its result dropped.

    ``seen`` is how many announcements of copies (:class:`AddKeys`, :class:`DataPut`) of this worker were heard: copies
    that it announced later are not meant.
    """

    keys: list[Key]
    seen: int = 0


class AcquireCopies(Message):
    """Hold copies of these for others' sake; those of a lower ``rank`` first."""

    items: list[Dep]
    rank: int
    peers: dict[Name, list[Name]]


class Leave(Message):
    """Begin no more tasks, give back what no thread has, take no data; a nanny: start no other worker.

    ``on=False``: it is not to go, after all. Answered with :class:`Leaving`.
    """

    number: int
    on: bool = True
    reason: Text = ""


class PutNoted(Message):
    """The scheduler has heard of data that was put: whoever put it may be told."""

    number: int


class Retired(Message):
    """The scheduler has let go of this worker for good: it is not to come back. ``close``: its process ends."""

    reason: Text
    close: bool = True


class Unknown(Message):
    """The scheduler does not know this worker: it is to register again, with what it holds."""


class Steal(Message):
    """Give this assignment up, if no thread has it."""

    key: Key
    attempt: Count


class Holders(Message):
    """The answer to :class:`Missing`: who holds the key now."""

    key: Key
    holders: list[Name]
    peers: dict[Name, list[Name]]


class Call(Message):
    """Run a function that a user sent, now, outside of the task queue."""

    rid: int
    payload: Payload
    wait: bool = True


class ChangePlugin(Message):
    """Install a plugin, or (without a payload) remove it."""

    rid: int
    name: Name
    payload: MaybePayload = None


class Close(Message):
    """End this process, and do not come back; ``failed``: not because anybody wanted it to."""

    reason: Text
    failed: bool = False


ToWorker = (
    WorkerRegistered
    | WorkerRejected
    | Compute
    | FreeKeys
    | AcquireCopies
    | Leave
    | PutNoted
    | Retired
    | Unknown
    | Steal
    | Holders
    | Give
    | Given
    | DropFunctions
    | Call
    | ChangePlugin
    | Close
)

# ---------------------------------------------------------------------------------------------- peers (get and put)


class GetData(Message):
    """Ask a worker for values; ``direct``: the asker could read large ones from the worker's memory."""

    rid: int
    keys: list[Key]
    max_bytes: Count = 0
    direct: bool = False


class Data(Message):
    """The values that are here; what was asked for and is neither here nor left for the next time is ``missing``.

    ``lent`` are values to be read from this process's memory (see ``shell/direct.py``): kept until :class:`Returned`.
    """

    rid: int
    items: dict[Key, Payload]
    missing: list[Key]
    errors: dict[Key, Text]
    lent: dict[Key, list[Any]] = msgspec.field(default_factory=dict)
    editions: dict[Key, int] = msgspec.field(default_factory=dict)


class Returned(Message):
    """What was lent with the answer ``lent`` was read. The reply says that it was there all the time."""

    rid: int
    lent: int


class PutData(Message):
    """Give a worker values; answered once the scheduler has been told."""

    rid: int
    client: Name
    items: dict[Key, Payload]


class ActorCall(Message):
    """Call a method of an actor that lives here with pickled arguments, or (without) read an attribute."""

    rid: int
    key: Key
    name: Name
    payload: MaybePayload = None


FromPeer = GetData | Returned | PutData | ActorCall | Bye
ToPeer = Data | Answer | Bye

# ---------------------------------------------------------------------------------------------- nanny ↔ scheduler


class RegisterNanny(Message):
    """First message of a nanny."""

    name: Name
    host: Name
    pid: Count
    address: Name = ""


class WorkerDied(Message):
    """The nanny's worker process is gone: why, and what it was running.

    ``cause`` is one word (see ``core/nanny/reactor.py``), ``peak`` the most bytes of memory that it had, ``output`` its
    last words.
    """

    worker: Name
    reason: Text
    running: list[Text]
    expected: bool = False
    restarting: bool = True
    address: Name = ""
    cause: Name = ""
    peak: Count = 0
    output: list[Text] = msgspec.field(default_factory=list)
    exitcode: int | None = None
    signal: int | None = None


class WorkerGaveUp(Message):
    """The nanny could not bring a worker up, and stops trying."""

    reason: Text


FromNanny = RegisterNanny | WorkerDied | WorkerGaveUp | Leaving | AskRetirement | LogEvent | Answer | Bye


class NannyRegistered(Message):
    """The scheduler knows the nanny now; ``plugins`` are to be installed, in order, before its worker starts."""

    scheduler_id: Name
    plugins: dict[Name, Payload] = msgspec.field(default_factory=dict)


class RestartWorker(Message):
    """Kill the worker process and start another; ``blame``: it is the fault of what it was running.

    Only ``worker`` is meant, where that is said: one that has taken its place already is left in peace.
    """

    rid: int
    reason: Text
    timeout: Finite
    blame: bool = False
    worker: Name = ""


class Order(Message):
    """Have the nanny that listens here do something; ``payload`` is a pickled mapping of arguments."""

    rid: int
    what: Name
    payload: Payload


FromCaller = Order | Bye
ToCaller = Answer | Bye

ToNanny = NannyRegistered | RestartWorker | Leave | Call | ChangePlugin | Close

#: What the scheduler's listener may hear on an open link, by the role that the handshake proved.
INBOUND: dict[str, Any] = {"client": FromClient, "worker": FromWorker, "nanny": FromNanny}
#: What those who dial the scheduler may hear from it.
OUTBOUND: dict[str, Any] = {"client": ToClient, "worker": ToWorker, "nanny": ToNanny}
