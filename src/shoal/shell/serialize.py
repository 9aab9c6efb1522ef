"""User objects to bytes and back.

Rules: a pickle never copies a large buffer (protocol 5, out of band); what plain pickle would send by reference to
``__main__`` goes through cloudpickle; nothing here runs on an event loop with data of unknown size except where its
caller says so. Futures inside arguments become :class:`KeyRef`, and come out as the value on the worker.
"""

from __future__ import annotations

import base64
import hashlib
import pickle
import sys
import threading
import traceback as tracebacks
from collections.abc import Callable, Sequence
from itertools import islice
from time import time
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType, TracebackType
from typing import Any, Final

import msgspec

from shoal.checks import name
from shoal.checks import text as sendable
from shoal.errors import SerializationError
from shoal.messages import Blob, LogEvent, TaskError
from shoal.shell import doors

#: Buffers smaller than this are copied into the pickle.
_OUT_OF_BAND = 32 * 1024
#: A pickle up to this size travels inside of its message.
_INSIDE = 64 * 1024
_MOST_TEXT = 20_000
#: Bytes of a pickled traceback.
_MOST_TRACEBACK = 1 << 20
#: Errors that led to each other, as far as they travel.
_MOST_CAUSES = 10
#: Bytes of an event, or of metadata.
MOST_PLAIN = 64 << 20

_local = threading.local()


class KeyRef:
    """The place of a task's result in the arguments of another task."""

    __slots__ = ("key",)

    def __init__(self, key: str) -> None:
        self.key = key

    def __reduce__(self) -> tuple[Callable[[str], Any], tuple[str]]:
        return input_value, (self.key,)

    def __repr__(self) -> str:
        return f"<{self.key}>"


def input_value(key: str) -> Any:
    """What a reference to the result of ``key`` comes out of a pickle as, on the worker that runs the task."""
    return _local.inputs[key]


class collecting:
    """While this is entered, what :func:`found_inside` is told of in this thread goes onto its list.

    ``in_graph`` says that the pickle is a node of a graph: futures inside of it come out as their values.
    """

    __slots__ = ("_before", "_found", "in_graph")

    def __init__(self, in_graph: bool = False) -> None:
        self._found: list[Any] = []
        self.in_graph = in_graph

    def __enter__(self) -> list[Any]:
        self._before = getattr(_local, "collecting", None)
        _local.collecting = self
        return self._found

    def __exit__(self, *args: object) -> None:
        _local.collecting = self._before


def found_inside(thing: Any) -> bool:
    """Note that ``thing`` is inside of what this thread is pickling; return whether that is a node of a graph."""
    current: collecting | None = getattr(_local, "collecting", None)
    if current is None:
        return False
    current._found.append(thing)
    return current.in_graph


class _OutOfBand:
    """Stands for bytes of which the pickle has no more than that they travel beside it."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        return bytes, (pickle.PickleBuffer(b""),)


_BYTES: Final = pickle.dumps(_OutOfBand(), 5, buffer_callback=lambda buffer: False)


def dumps(value: Any, what: str = "value") -> Any:
    """Return the payload of ``value``.

    Parameters
    ----------
    what
        Named in the error.

    Raises
    ------
    SerializationError
        If it cannot be pickled, with the cause.
    """
    if type(value) is bytes and len(value) >= _OUT_OF_BAND:
        return Blob([_BYTES, memoryview(value)])  # pickle itself would copy them, twice
    buffers: list[pickle.PickleBuffer] = []
    try:
        data = pickle.dumps(value, 5, buffer_callback=_collector(buffers))
        if b"__main__" in data:
            buffers.clear()
            data = _cloudpickle(value, buffers)
    except Exception as first:
        buffers.clear()
        try:
            data = _cloudpickle(value, buffers)
        except Exception as error:
            raise _cannot_be_pickled(value, what, error, first) from error
    if not buffers and len(data) <= _INSIDE:
        return data
    return Blob([data, *(buffer.raw() for buffer in buffers)])


def dumps_safely(value: Any, what: str = "value") -> Any:
    """As :func:`dumps`, where nothing else may come of it: a value may raise ``SystemExit`` when it is pickled."""
    try:
        return dumps(value, what)
    except SerializationError:
        raise
    except BaseException as error:
        raise _cannot_be_pickled(value, what, error) from error


def _cannot_be_pickled(value: Any, what: str, *errors: BaseException) -> SerializationError:
    """The error that says so, in the words of the first of ``errors`` that has any."""
    told = next((text for text in map(_words, errors) if text), doors.named(errors[0]))
    return SerializationError(f"{what} of type {doors.named(value)} cannot be pickled: {told}")


def _words(error: BaseException) -> str:
    try:
        return f"{error}"[:_MOST_TEXT] + ("" if isinstance(error, Exception) else f" ({doors.named(error)})")
    except BaseException:
        return ""  # its own __str__ raises: the name of its class is told


def _collector(buffers: list[pickle.PickleBuffer]) -> Callable[[pickle.PickleBuffer], bool]:
    def collect(buffer: pickle.PickleBuffer) -> bool:
        try:
            if buffer.raw().nbytes < _OUT_OF_BAND:
                return True
        except BufferError:
            return True
        buffers.append(buffer)
        return False

    return collect


def _cloudpickle(value: Any, buffers: list[pickle.PickleBuffer]) -> bytes:
    import cloudpickle

    data: bytes = cloudpickle.dumps(value, protocol=5, buffer_callback=_collector(buffers))
    return data


def loads(payload: Any) -> Any:
    """Return the value of a payload."""
    if type(payload) is Blob:
        frames = payload.frames
        return pickle.loads(frames[0], buffers=frames[1:])
    return pickle.loads(payload)


def loads_with_inputs(payload: Any, inputs: dict[str, Any]) -> Any:
    """As :func:`loads`, with each :class:`KeyRef` replaced by the value of its key."""
    _local.inputs = inputs
    try:
        return loads(payload)
    finally:
        _local.inputs = None


def payload_nbytes(payload: Any) -> int:
    return payload.nbytes if type(payload) is Blob else len(payload)


# ------------------------------------------------------------------------------------------------------ functions


def dump_function(function: Any) -> tuple[str, Any]:
    """Return the id of a function (its name and a hash of its pickle) and its payload.

    Raises
    ------
    SerializationError
        If it cannot be pickled.
    """
    payload = dumps(function, f"function {getattr(function, '__qualname__', function)!s}")
    frames = payload.frames if type(payload) is Blob else [payload]
    digest = hashlib.blake2b(digest_size=16)
    for frame in frames:
        digest.update(frame)
    called = str(getattr(function, "__qualname__", type(function).__qualname__))
    return f"{sendable(called, 80)}:{digest.hexdigest()}", payload


def stable_state(function: Any, depth: int = 4) -> tuple[Any, ...] | None:
    """Return what the pickle of a function depends on beside its code, or None where that cannot be told.

    Two calls that return equal tuples mean that the pickle made in between is still good. A function that refers to
    mutable globals or cells has none: it is pickled anew for every call, as its author would expect.
    """
    if isinstance(function, BuiltinFunctionType) and isinstance(getattr(function, "__self__", None), ModuleType):
        return ()
    if not isinstance(function, FunctionType):
        return () if isinstance(function, type) and function.__module__ != "__main__" else None
    if function.__module__ != "__main__" and _importable(function):
        return ()
    if depth == 0 or function.__dict__ or function.__kwdefaults__:
        return None
    found: list[Any] = []
    cells = [cell.cell_contents for cell in function.__closure__ or () if _filled(cell)]
    names = _global_names(function.__code__)
    values = [function.__globals__[name] for name in names if name in function.__globals__]
    for value in (*cells, *values, *(function.__defaults__ or ())):
        if isinstance(value, int | float | complex | str | bytes | bool | None):
            found.append((type(value), value))
        elif isinstance(value, ModuleType | type):
            found.append(id(value))
        else:
            if value is function:
                continue
            inner = stable_state(value, depth - 1)
            if inner is None:
                return None
            found.append((id(value), inner))
    return (id(function.__code__), *found)


def _filled(cell: Any) -> bool:
    try:
        return bool(cell.cell_contents) or True
    except ValueError:
        return False


def _importable(function: FunctionType) -> bool:
    module = sys.modules.get(function.__module__)
    return module is not None and getattr(module, function.__qualname__, None) is function


def _global_names(code: CodeType) -> list[str]:
    names = list(code.co_names)
    for const in code.co_consts:
        if isinstance(const, CodeType):
            names += _global_names(const)
    return names


# ------------------------------------------------------------------------------------------------------ errors


#: The attributes that all exceptions have: a class may put properties of its own over them.
_CAUSE, _CONTEXT, _SUPPRESSED, _TRACEBACK = (
    BaseException.__dict__[name] for name in ("__cause__", "__context__", "__suppress_context__", "__traceback__")
)


def dump_error(error: BaseException, depth: int = 0) -> TaskError:
    """Return an exception as it travels, with those that led to it; what cannot be pickled travels as text.

    It is code of users that says what an exception is, and how it is pickled: whatever that raises, this does not.
    """
    try:
        return _dump_error(error, depth)
    except BaseException as failure:  # there is no memory, or a class does what nobody has thought of
        doors.report("error", failure, f"an exception of type {doors.named(error)} could not be sent, and")
        return TaskError(None, None, sendable(doors.text_of(error)), "", None, False)


def _dump_error(error: BaseException, depth: int) -> TaskError:
    text = doors.text_of(error)
    lines = ""
    frames = _TRACEBACK.__get__(error)
    try:
        lines = "".join(tracebacks.format_exception(type(error), error, frames))
    except BaseException as failure:
        lines = f"(its traceback cannot be formatted: {doors.named(failure)})"
    text, lines = sendable(text), sendable(lines[-_MOST_TEXT:])
    exception = traceback = None
    try:
        exception = _dump_bare(error)
        loads(exception)
    except BaseException:  # it may raise anything when it is pickled, or read again
        exception = None  # the text says what it was
    if frames is not None:
        try:
            import tblib

            traceback = pickle.dumps(tblib.Traceback(frames).to_dict(), 5)
            if len(traceback) > _MOST_TRACEBACK:
                traceback = None
                lines += f"\n(the traceback itself was not sent: its pickle is over {_MOST_TRACEBACK:,} bytes)"
        except Exception as failure:
            lines += sendable(f"\n(the traceback itself could not be sent: {doors.named(failure)})")
    explicit = (cause := _CAUSE.__get__(error)) is not None
    before = cause if explicit else None if _SUPPRESSED.__get__(error) else _CONTEXT.__get__(error)
    earlier = dump_error(before, depth + 1) if before is not None and depth < _MOST_CAUSES else None
    return TaskError(exception, traceback, text, lines, earlier, explicit)


def _dump_bare(error: BaseException) -> Any:
    """The pickle of an exception without its traceback and those that led to it, which travel beside it.

    Where tblib's pickling of exceptions is installed (by ``dask.multiprocessing``, or by users), they would be inside
    of it, and a deep stack or a long chain would cost the exception its type.
    """
    kept = [(slot, slot.__get__(error)) for slot in (_TRACEBACK, _CAUSE, _CONTEXT, _SUPPRESSED)]
    try:
        for slot, _ in kept[:3]:
            slot.__set__(error, None)
        return dumps(error, "exception")
    finally:
        for slot, value in kept:
            slot.__set__(error, value)


def error_parts(error: BaseException) -> tuple[Any, ...]:
    """As :func:`dump_error`, as plain values."""
    sent = dump_error(error)
    return sent.exception, sent.traceback, sent.text, sent.traceback_text, sent.before, sent.explicit


def load_error(error: TaskError) -> BaseException:
    """Return the exception, with its traceback, or one of our own that carries the text."""
    from shoal.errors import LostActorError, LostDataError, NoValidWorkerError, UsageError
    from shoal.errors import TaskError as RemoteError

    found: Any = None
    if error.exception is not None:
        try:
            found = loads(error.exception)
        except BaseException as cause:  # unpickling it may raise anything, SystemExit too
            if doors.is_for_us(cause):
                raise
            told = doors.text_of(cause)
            found = RemoteError(f"{error.text} (the exception itself cannot be unpickled here: {told})")
    if not issubclass(type(found), BaseException):  # isinstance would ask its __class__
        kind, _, rest = error.text.partition(": ")
        kinds: dict[str, type[Exception]] = {
            "LostDataError": LostDataError, "LostActorError": LostActorError, "NoValidWorkerError": NoValidWorkerError,
            "SerializationError": SerializationError, "UsageError": UsageError,
        }  # fmt: skip
        found = kinds[kind](rest) if kind in kinds else RemoteError(f"{error.text}\n{error.traceback_text}".strip())
    if error.before is not None:
        before = load_error(error.before)
        if error.explicit:
            _CAUSE.__set__(found, before)
        else:
            _CONTEXT.__set__(found, before)
    _TRACEBACK.__set__(found, load_traceback(error))
    raised: BaseException = found
    return raised


def load_traceback(error: TaskError) -> TracebackType | None:
    """Return the remote traceback as an object, if it came."""
    if error.traceback is None:
        return None
    import tblib

    frames: TracebackType | None = tblib.Traceback.from_dict(pickle.loads(error.traceback)).as_traceback()
    return frames


# ------------------------------------------------------------------------------------------------------ sizes

_ATOMS = frozenset({int, float, bool, complex, str, bytes, bytearray, type(None)})


#: Elements of a collection that are looked at, objects in all, and how deep; the size past which nothing is believed.
_SAMPLE, _MOST_LOOKS, _DEEPEST, _LARGEST = 10, 1000, 50, 1 << 48


def sizeof(value: Any) -> int:
    """Bytes that ``value`` takes, by dask's registry where it knows better than ``sys.getsizeof``.

    Never raises: where code of users raises when it is asked, or says what cannot be, it is the size of the bare
    object.
    """
    kind = type(value)
    if kind in _ATOMS:
        return sys.getsizeof(value)
    try:
        size = _Sizes().of(value, 0)
        if 0 <= size <= _LARGEST:
            return size
        doors.report("size", ValueError(f"its size is said to be {size}"), f"the size of a {doors.named(value)}")
    except BaseException as error:
        doors.report("size", error, f"the size of a {doors.named(value)}")
    return object.__sizeof__(value)


class _Sizes:
    """Looks at the parts of one value: not at all of them, since one that holds itself has no end."""

    __slots__ = ("_left",)

    def __init__(self) -> None:
        self._left = _MOST_LOOKS

    def of(self, value: Any, depth: int) -> int:
        kind = type(value)
        if kind in _ATOMS:
            return sys.getsizeof(value)
        self._left -= 1
        if kind in (list, tuple, set, frozenset):
            return sys.getsizeof(value) + self._of_parts(value, depth)
        if kind is dict:
            return sys.getsizeof(value) + self._of_parts(value, depth) + self._of_parts(value.values(), depth)
        nbytes = getattr(value, "nbytes", None)
        if type(nbytes) is int:
            return nbytes
        from dask.sizeof import sizeof as dask_sizeof

        return int(dask_sizeof(value))

    def _of_parts(self, values: Any, depth: int) -> int:
        """Bytes of the parts of a collection, from a sample where there are many."""
        count = len(values)
        if not count or self._left <= 0 or depth == _DEEPEST:
            return 0
        if count <= _SAMPLE:
            return sum(self.of(one, depth + 1) for one in values)
        sample = values[:: count // _SAMPLE] if isinstance(values, list | tuple) else list(islice(values, _SAMPLE))
        return sum(self.of(one, depth + 1) for one in sample) * count // len(sample)


def event_of(topic: str | Sequence[str], msg: Any) -> LogEvent:
    """The message that logs an event under one or more topics.

    Raises
    ------
    TypeError
        If msgpack cannot carry it.
    """
    topics = [name(one, "topic") for one in ([topic] if isinstance(topic, str) else topic)]
    return LogEvent(topics, check_plain(msg, f"the message for {topics}"), time())


def check_plain(value: Any, what: str, most: int = MOST_PLAIN) -> Any:
    """Check that ``value`` is of plain values, which msgpack can carry, and return it.

    Raises
    ------
    TypeError
        If it is not, or takes more than ``most`` bytes.
    """
    try:
        data = msgspec.msgpack.encode(value)
        msgspec.msgpack.decode(data)  # what is nested too deep for that
    except Exception as error:  # whatever is inside of it
        raise TypeError(f"{what} must be of plain values (msgpack): {error}") from error
    if len(data) > most:
        raise TypeError(f"{what} must take at most {most:,} bytes, and takes {len(data):,}")
    return value


def dumps_text(value: Any, what: str) -> str:
    """Pickle ``value`` as text.

    Raises
    ------
    SerializationError
        If it cannot be pickled, with the cause.
    """
    payload = dumps(value, what)
    return base64.b64encode(payload if isinstance(payload, bytes) else _cloudpickle_whole(value)).decode()


def _cloudpickle_whole(value: Any) -> bytes:
    import cloudpickle

    data: bytes = cloudpickle.dumps(value, protocol=5)
    return data


def loads_text(text: str) -> Any:
    """Return what :func:`dumps_text` was given."""
    return loads(base64.b64decode(text))
