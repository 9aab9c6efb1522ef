"""Calls of a user's as task specifications: functions pickled once, futures replaced by references, keys made."""

from __future__ import annotations

import hashlib
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, NamedTuple
from uuid import uuid4

from shoal import checks, config
from shoal.client.future import Future
from shoal.core.fitting import checked
from shoal.errors import ForeignFutureError, UsageError
from shoal.ids import key_to_wire
from shoal.messages import DropFunctions, Options, TaskSpec
from shoal.shell import serialize

_ANNOTATIONS: Final = frozenset(
    {"span", "priority", "retries", "workers", "allow_other_workers", "resources", "executor", "killable", "timeout"}
)

#: Bytes of arguments after which the calls of a map that were read so far are submitted.
BATCH_BYTES: Final = 16 << 20
#: About what a call takes beside its arguments and its key.
_CALL_BYTES: Final = 64
_NO_KEY: Final = object()
#: Characters of a key after its prefix: a dash, and a digest.
_DIGEST: Final = 33

#: Functions that a client and the scheduler remember for it; the ones used longest ago are forgotten.
FUNCTIONS_KEPT: Final = 1000


class FunctionCache:
    """The functions of one client: which pickle each has, and which the scheduler was sent."""

    def __init__(self, most: int = FUNCTIONS_KEPT) -> None:
        self._most = most
        #: By function: what its pickle depends on, its id, its payload.
        self._pickled: OrderedDict[Any, tuple[Any, str, Any]] = OrderedDict()
        #: Ids that the scheduler knows, the latest used last.
        self._sent: OrderedDict[str, None] = OrderedDict()

    def pickle(self, function: Any) -> tuple[str, Any]:
        """Return the id and the payload of a function.

        Raises
        ------
        SerializationError
            If it cannot be pickled.
        UsageError
            If it takes more, with what is bound into it, than is sent at once.
        """
        state = serialize.stable_state(function)
        if state is None:
            return _fitting(function, *serialize.dump_function(function))
        known = self._pickled.get(function)
        if known is None or known[0] != state:
            known = self._pickled[function] = (
                state,
                *_fitting(function, *serialize.dump_function(function)),
            )
            if len(self._pickled) > self._most:
                self._pickled.popitem(last=False)
        self._pickled.move_to_end(function)
        return known[1], known[2]

    def sending(self, fn: str) -> tuple[bool, DropFunctions | None]:
        """``fn`` is about to be referred to: whether its payload must go along, and what is to be dropped after."""
        fresh = fn not in self._sent
        self._sent[fn] = None
        self._sent.move_to_end(fn)
        if len(self._sent) <= self._most:
            return fresh, None
        oldest, _ = self._sent.popitem(last=False)
        return fresh, DropFunctions([oldest])


def _fitting(function: Any, fn: str, payload: Any) -> tuple[str, Any]:
    """What :func:`serialize.dump_function` returned, unless it is too large."""
    advice = "scatter what is bound into it (client.scatter), and pass the future"
    checks.payload(serialize.payload_nbytes(payload), f"the function {name_of(function)}", advice)
    return fn, payload


def name_of(function: Any) -> str:
    """The prefix of the keys of a function's calls."""
    inner = getattr(function, "func", function)  # functools.partial
    name = str(getattr(inner, "__name__", type(inner).__name__)).strip("<>")
    return checks.text(name, 200) or type(inner).__name__


def prefix_of(key: Any) -> str:
    """Check what all keys of a map are to begin with; it may be empty, and a tuple stands for its text.

    Raises
    ------
    UsageError
        If it would make keys that are too long, or that UTF-8 cannot carry.
    """
    key = key if isinstance(key, str) else str(key)
    return checks.name(key, "key", checks.MOST_KEY - _DIGEST) if key else ""


def unpack(value: Any, client: Any, deps: list[str]) -> Any:
    """Replace futures in containers by references, and note their keys.

    Raises
    ------
    ForeignFutureError
        If one belongs to another client, or to a closed one.
    """
    kind = type(value)
    if kind is Future:
        deps.append(own(value, client))
        return serialize.KeyRef(deps[-1])
    if kind in (list, tuple, set, frozenset) and value:
        return kind(unpack(item, client, deps) for item in value)
    if kind is dict and value:
        return {unpack(name, client, deps): unpack(item, client, deps) for name, item in value.items()}
    return value


def own(future: Future, client: Any) -> str:
    """The wire key of one of the client's own futures.

    Raises
    ------
    ForeignFutureError
        If it belongs to another client, or to a closed one.
    """
    if future.client is not client:
        raise ForeignFutureError(
            f"{future!r} belongs to another client, or to one that is closed; "
            "gather it there, or submit it with the client that made it"
        )
    return future._record.key


class Packed(NamedTuple):
    """Calls that are submitted in one message: specifications, the futures hidden in their arguments, bytes."""

    specs: list[TaskSpec]
    hidden: list[list[Future] | None]
    nbytes: int


def pack_calls(
    client: Any,
    fn: str,
    name: str,
    calls: Iterable[tuple[Any, Any]],
    keys: Iterator[Any] | None,
    pure: bool,
    first: int = 0,
) -> Packed:
    """Take calls until there are none or their arguments are large; return a specification for each.

    Raises
    ------
    SerializationError
        If an argument cannot be pickled.
    UsageError
        If there are more calls than keys.
    """
    where = f"an argument of {name}"
    specs: list[TaskSpec] = []
    hidden: list[list[Future] | None] = []
    nbytes = 0
    for number, (args, kwargs) in enumerate(calls, first):
        deps: list[str] = []
        with serialize.collecting() as found:
            data = serialize.dumps((unpack(args, client, deps), unpack(kwargs, client, deps)), where)
        key = None if keys is None else next(keys, _NO_KEY)
        if type(data) is not bytes:
            which = f"(key {key!r:.200})" if keys is not None else f"(call {number})"
            checks.payload(data.nbytes, f"what {name} is called with {which}")
        if keys is not None:
            if key is _NO_KEY:
                raise UsageError(f"key holds {number} keys, and there are more calls")
            wire = key_to_wire(key)
        elif pure:
            digest = hashlib.blake2b(fn.encode(), digest_size=16)
            for frame in data.frames if not isinstance(data, bytes) else [data]:
                digest.update(frame)
            wire = f"{name}-{digest.hexdigest()}"
        else:
            wire = f"{name}-{uuid4().hex}"
        specs.append(TaskSpec(wire, fn, data, deps, number))
        hidden.append(list(found) if found else None)
        nbytes += serialize.payload_nbytes(data) + len(wire) + _CALL_BYTES
        if nbytes > BATCH_BYTES:
            break
    return Packed(specs, hidden, nbytes)


def options_of(
    priority: int | None = None,
    retries: int | None = None,
    workers: Any = None,
    allow_other_workers: bool | None = None,
    resources: dict[str, float] | None = None,
    actor: bool = False,
    executor: str | None = None,
    killable: bool | None = None,
    timeout: Any = None,
    span: dict[str, Any] | None = None,
) -> Options:
    """Check what a submission asks for beyond the function; what is not given comes from ``dask.annotate``.

    Raises
    ------
    UsageError
        Naming the argument that makes no sense.
    """
    noted = _annotations()
    plain = priority is None and retries is None and workers is None and resources is None and executor is None
    if plain and not noted and allow_other_workers is None and killable is None and timeout is None and span is None:
        return Options(actor=actor)  # nearly all calls: nothing is to be checked
    if span is not None:
        noted["span"] = span
    priority = noted.get("priority", 0) if priority is None else priority
    retries = noted.get("retries", 0) if retries is None else retries
    if workers is None:
        workers = noted.get("workers")
        noted_others = checks.flag(noted.get("allow_other_workers"), "allow_other_workers")
        allow_other_workers = noted_others or allow_other_workers
    resources = noted.get("resources") if resources is None else resources
    executor = noted.get("executor", "") if executor is None else executor
    named = checks.workers(workers)
    allow_other_workers = checks.flag(allow_other_workers, "allow_other_workers")
    if allow_other_workers and named is None:
        raise UsageError("allow_other_workers=True means nothing without workers=")
    priority = checks.priority(priority)
    retries = checks.whole(retries, "retries", 0)
    resources = {name: amount for name, amount in (checks.amounts(resources) or {}).items() if amount} or None
    executor = checks.name(executor, "executor") if executor or not isinstance(executor, str) else ""
    executor = "" if executor == "default" else executor
    limit = config.seconds(noted.get("timeout") if timeout is None else timeout, "task_timeout")
    if limit is not None and limit <= 0:
        raise UsageError(f"task_timeout must be more than 0 seconds, got {timeout!r}")
    apart = limit if limit is not None else 0.0 if (noted.get("killable") if killable is None else killable) else None
    if apart is not None and (actor or executor):
        raise UsageError("killable and task_timeout are not for actors, nor for tasks of another executor")
    around = noted.get("span") or {}
    if not isinstance(around, dict):
        raise UsageError(f"the annotation 'span' is made by shoal.span, got {around!r:.200}")
    names = [checks.name(one, "span") for one in around.get("name", ())] or None
    ids = [checks.name(one, "span") for one in around.get("ids", ())] or None
    return checked(
        Options(
            priority,
            retries,
            named,
            allow_other_workers,
            resources,
            executor,
            actor,
            apart,
            names,
            ids,
        )
    )


def asking_for(
    priority: int | None,
    retries: int | None,
    workers: Any,
    allow_other_workers: bool | None,
    resources: dict[str, float] | None,
) -> Callable[[dict[str, Any]], Options]:
    """A function of a task's annotations that says what is asked for: what is given here has the last word.

    Raises
    ------
    UsageError
        Naming the argument that makes no sense.
    """
    given: dict[str, Any] = {"priority": priority, "retries": retries, "resources": resources}
    if workers is not None:
        given |= {"workers": workers, "allow_other_workers": allow_other_workers}
    given = {name: value for name, value in given.items() if value is not None}
    # For graphs, libraries say allow_other_workers=True whatever the workers are; it means nothing without them.
    options_of(priority, retries, workers, allow_other_workers if workers is not None else None, resources)

    def ask(annotations: dict[str, Any]) -> Options:
        noted = {name: value for name, value in annotations.items() if name in _ANNOTATIONS}
        return options_of(**{**noted, **given})

    return ask


def _annotations() -> dict[str, Any]:
    """What ``dask.annotate`` says here; nothing where dask was not even imported."""
    found = getattr(sys.modules.get("dask"), "get_annotations", None)
    return dict(found()) if found is not None else {}
