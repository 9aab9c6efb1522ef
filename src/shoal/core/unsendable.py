"""What is said, and to whom, where a message cannot be encoded: whoever waits for it gets an error.

That a message cannot be encoded is a bug of shoal's: what users give is checked by :mod:`shoal.checks` where they give
it. This is what keeps such a bug from costing more than its own message.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import msgspec

from shoal.checks import carries, plain, text
from shoal.messages import (
    ActorCall,
    Answer,
    Blob,
    Bye,
    Call,
    ChangePlugin,
    Close,
    Compute,
    Data,
    Failed,
    Finished,
    GetData,
    Heartbeat,
    KeyErred,
    KeysCancelled,
    KeysDone,
    LogEvent,
    Logged,
    ManageMemory,
    Meet,
    Options,
    Order,
    PutData,
    Query,
    Rebalance,
    RegisterClient,
    RegisterNanny,
    RegisterPlugin,
    RegisterWorker,
    Replicate,
    Restart,
    RestartWorker,
    Retire,
    Returned,
    RunFunction,
    Shutdown,
    Submit,
    TaskError,
    Want,
    WorkerRejected,
)

#: What is answered with :class:`Answer`.
_REQUESTS: Final = (
    Query, RunFunction, Restart, RegisterPlugin, Retire, Replicate, Rebalance, ManageMemory, Meet, Shutdown, PutData,
    ActorCall, Returned, Order, RestartWorker, Call, ChangePlugin,
)  # fmt: skip


class Fallback(NamedTuple):
    """Messages to be sent instead, and messages that are taken for the peer's answer."""

    instead: list[Any]
    heard: list[Any]


def fallback(message: Any, why: str) -> Fallback:
    """What takes the place of a message that cannot be encoded.

    Parameters
    ----------
    message
        The message; where it may be split, with one item.
    why
        The error, in words.
    """
    error = TaskError(None, None, f"SerializationError: {why}")
    match message:
        case Submit():
            # What follows belongs to the same submission, or waits for its end.
            lost = dict.fromkeys([task.key for task in message.tasks])
            wants = [key for key in message.wants if carries(key) and key not in lost]
            lost.update(dict.fromkeys(key for key in message.wants if not carries(key)))
            rest = Submit([], {}, Options(), wants, message.wish, message.fifo, message.more)
            return Fallback([rest], [KeyErred(key, key, error, message.wish) for key in lost])
        case Want():
            return Fallback([], [KeysCancelled(message.keys, why, False, message.wish)])
        case GetData():
            return Fallback([], [Data(message.rid, {}, [], dict.fromkeys(message.keys, why))])
        case RegisterClient():
            return Fallback([], [Bye(why)])
        case RegisterWorker():
            return Fallback([], [WorkerRejected(why)])
        case RegisterNanny():
            return Fallback([], [Close(why)])
        case Compute():
            return Fallback([], [Failed(task.key, task.attempt, 0.0, 0.0, error) for task in message.tasks])
        case Finished():
            return Fallback([Failed(item.key, item.attempt, 0.0, 0.0, error) for item in message.items], [])
        case Failed():
            told = TaskError(None, None, text(message.error.text), f"(it came as text alone: {why})")
            return Fallback([Failed(message.key, message.attempt, 0.0, 0.0, told)], [])
        case KeysDone():
            return Fallback([KeyErred(item.key, item.key, error, message.wish) for item in message.items], [])
        case KeyErred():
            told = TaskError(None, None, text(message.error.text), f"(it came as text alone: {why})")
            return Fallback([KeyErred(message.key, message.origin, told, message.wish)], [])
        case Answer():
            try:
                value = _rounded(message.value)
                msgspec.msgpack.encode(value, enc_hook=_only_blobs)
            except Exception:  # it was not that
                return Fallback([Answer(message.rid, None, why)], [])
            return Fallback([Answer(message.rid, value)], [])
        case Data():
            keys = [*message.items, *message.lent]
            missing = [key for key in message.missing if carries(key)]
            return Fallback([Data(message.rid, {}, missing, {key: why for key in keys if carries(key)})], [])
        case Heartbeat():
            return Fallback([Heartbeat(plain(message.metrics))], [])
        case LogEvent() | Logged():
            return Fallback([], [])  # nobody waits for it; the log says that it was lost
        case _ if isinstance(message, _REQUESTS):
            return Fallback([], [Answer(message.rid, None, why)])
        case _:
            return Fallback([mended(message)], [])


def _only_blobs(value: Any) -> None:
    """What the codec takes beyond plain values, told as nothing."""
    if type(value) is not Blob:
        raise TypeError(f"{type(value).__name__} cannot stand in a message")


def _rounded(value: Any) -> Any:
    """``value`` with whole numbers beyond 64 bits, as sums of sizes may be, as others."""
    if type(value) in (list, tuple):
        return [_rounded(one) for one in value]
    if type(value) is dict:
        return {name: _rounded(one) for name, one in value.items()}
    return float(value) if type(value) is int and not -(2**63) <= value < 2**64 else value


def mended(value: Any) -> Any:
    """``value`` with texts and numbers that can be encoded in place of those that cannot."""
    if isinstance(value, msgspec.Struct):
        return type(value)(*(mended(getattr(value, name)) for name in value.__struct_fields__))
    if type(value) is list:
        return [mended(one) for one in value]
    if type(value) is tuple:
        return tuple(mended(one) for one in value)
    if type(value) is dict:
        return {mended(name): mended(one) for name, one in value.items()}
    return value if type(value) in (bytes, Blob) else plain(value)
