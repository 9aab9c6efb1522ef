"""A message that cannot be encoded costs itself alone, and whoever waits for it hears of it."""

from __future__ import annotations

import asyncio
import socket
import typing
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal import messages
from shoal.core.framing import COUNT_LIMIT, Codec
from shoal.core.parcels import FRAME_BYTES, Parcels
from shoal.core.splitting import MANY, count, join, pieces
from shoal.messages import (
    AddKeys,
    Answer,
    Blob,
    Compute,
    ComputeTask,
    Done,
    Failed,
    Finished,
    KeyErred,
    KeyInfo,
    KeysDone,
    Meet,
    Options,
    Submit,
    TaskDone,
    TaskError,
    TaskSpec,
    Unwant,
)
from shoal.shell.link import Identity, Link
from tests.hostile import CASES, UNIONS, structs

#: A message of each direction by which its place is known among others.
MARKS: dict[str, Any] = {
    "FromClient": lambda n: Unwant([f"mark-{n}"]), "ToClient": lambda n: messages.Warned(f"mark-{n}"),
    "FromWorker": messages.Leaving, "ToWorker": messages.PutNoted,
    "FromPeer": lambda n: messages.Returned(n, n), "ToPeer": lambda n: Answer(n, f"mark-{n}"),
    "FromNanny": messages.Leaving, "ToNanny": lambda n: messages.Leave(n, True, f"mark-{n}"),
    "FromCaller": lambda n: messages.Order(n, "mark", b""), "ToCaller": lambda n: Answer(n, f"mark-{n}"),
}  # fmt: skip


def through(union: str, said: list[Any]) -> tuple[list[Any], Parcels]:
    """What arrives of what is said in one turn."""
    parcels, receiver = Parcels(Codec(None)), Codec(UNIONS[union])
    arrived = []
    for body, buffers in parcels.frames(said):
        arrived += receiver.decode(body, [memoryview(bytes(buffer)) for buffer in buffers])
    return arrived, parcels


@pytest.mark.parametrize(("union", "kind"), CASES, ids=[f"{union}-{kind.__name__}" for union, kind in CASES])
@settings(max_examples=12)
@given(data=st.data())
def test_hostile_values_cost_their_own_message(union: str, kind: Any, data: Any) -> None:
    """Its neighbours of the same turn arrive, in their order; it arrives too, or it is said that it could not."""
    before, after = MARKS[union](1), MARKS[union](2)
    hostile = data.draw(structs(kind, hostile=True))
    parcels = Parcels(Codec(None))
    bodies = list(parcels.frames([before, hostile, after]))
    decoder = msgspec.msgpack.Decoder(ext_hook=lambda code, told: ("blob", bytes(told)))
    arrived = [message for body, _ in bodies for message in decoder.decode(body)]
    plain = [msgspec.msgpack.decode(msgspec.msgpack.encode(mark)) for mark in (before, after)]
    assert arrived[0] == plain[0]
    assert arrived[-1] == plain[1]
    if parcels.refused:
        assert all(name and why for name, why in parcels.refused)
    else:
        assert [message[0] for message in arrived[1:-1]] == [kind.__name__]


@pytest.mark.parametrize(("union", "kind"), CASES, ids=[f"{union}-{kind.__name__}" for union, kind in CASES])
@settings(max_examples=5)
@given(data=st.data())
def test_good_values_arrive_equal(union: str, kind: Any, data: Any) -> None:
    """Whatever stands beside them."""
    message = data.draw(structs(kind, hostile=False))
    arrived, parcels = through(union, [message, message])
    assert not parcels.refused
    assert arrived == [message, message]


#: Fields that hold any value, and who looks at it.
ANY = {
    "Query.args": "core/scheduler/arguments.py", "Meet.args": "core/scheduler/arguments.py",
    "LogEvent.msg": "whoever reads it", "Logged.msg": "whoever reads it",
    "Retire.criteria": "core/scheduler/scaling.py",
    "ClientRegistered.settings": "plain values of the scheduler's configuration", "Answer.value": "who asked",
    "Heartbeat.metrics": "whoever reads it",
    "Data.lent": "shell/peers.py",
}  # fmt: skip


def _unlimited(kind: Any, found: set[str], seen: set[Any]) -> set[str]:
    """Fields of a message and of its items that take any text, any number with a point, or anything at all."""
    for name, hint in typing.get_type_hints(kind, include_extras=True).items():
        parts = [hint]
        for part in parts:
            if part in (str, float, bytes, Any):
                found.add(f"{kind.__name__}.{name}")
            elif isinstance(part, type) and issubclass(part, msgspec.Struct) and part not in seen:
                seen.add(part)
                _unlimited(part, found, seen)
            elif typing.get_origin(part) is not typing.Annotated:
                parts.extend(typing.get_args(part))
    return found


def test_each_field_says_what_it_may_hold() -> None:
    """By a type of ``fields.py``; those that may hold anything are listed here, with who looks at what they hold."""
    found: set[str] = set()
    for _, kind in CASES:
        _unlimited(kind, found, set())
    assert found == set(ANY)


BAD = "caf\udce9"


def failed(key: str) -> Any:
    """The message in which a worker says that a task failed, whatever its error says."""
    return lambda message: isinstance(message, Failed) and message.key == key and "could not be encoded" in str(message)


def test_who_waits_for_a_task_hears_of_it() -> None:
    """One of forty reports has a size of 90 bits: thirty-nine arrive, and one task fails."""
    items = [TaskDone(f"x-{n}", n, 10**27 if n == 7 else 8, "int", 0.0, 1.0) for n in range(40)]
    arrived, parcels = through("FromWorker", [Finished(items)])
    done = [item.key for message in arrived if isinstance(message, Finished) for item in message.items]
    assert done == [f"x-{n}" for n in range(40) if n != 7]
    assert [message.key for message in arrived if isinstance(message, Failed)] == ["x-7"]
    assert [kind for kind, _ in parcels.refused] == ["Finished"]


def test_a_task_that_cannot_be_submitted_is_an_error_of_its_future() -> None:
    """The others of the same submission are submitted, all with its last piece."""
    specs = [TaskSpec(BAD if n == 3 else f"x-{n}", "f", b"", []) for n in range(6)]
    wants = [spec.key for spec in specs]
    arrived, parcels = through("FromClient", [Submit(specs, {"f": b"f"}, Options(), wants, 5)])
    assert [part.more for part in arrived] == [True] * (len(arrived) - 1) + [False]
    whole = join(arrived)
    good = [key for key in wants if key != BAD]
    assert ([spec.key for spec in whole.tasks], whole.wants, whole.wish) == (good, good, 5)
    assert [(type(told), told.key, told.wish) for told in parcels.heard] == [(KeyErred, BAD, 5)]


@pytest.mark.parametrize("bad", range(4))
def test_a_bad_payload_of_a_submission_is_an_error_of_its_future(bad: int) -> None:
    """Be it the first, the last, or one between: its key is good, and is wanted no more in what arrives."""
    specs = [TaskSpec(f"x-{n}", "f", object() if n == bad else b"", []) for n in range(4)]
    arrived, parcels = through("FromClient", [Submit(specs, {"f": b"f"}, Options(), [s.key for s in specs])])
    whole = join(arrived)
    assert f"x-{bad}" not in [spec.key for spec in whole.tasks]
    assert len(whole.tasks) == 3
    assert f"x-{bad}" not in whole.wants
    assert [told.key for told in parcels.heard] == [f"x-{bad}"]


def test_a_task_that_cannot_be_sent_to_a_worker_fails() -> None:
    """The scheduler hears it as if the worker had said so."""
    tasks = [ComputeTask(f"x-{n}", n, "f", object() if n == 1 else b"", [], (0, 0, 0)) for n in range(3)]
    arrived, parcels = through("ToWorker", [Compute(tasks, {"f": b""}, {"w": ["a"]})])
    assert [task.key for message in arrived for task in message.tasks] == ["x-0", "x-2"]
    assert arrived[0].functions == {"f": b""}
    assert [(type(told), told.key, told.attempt) for told in parcels.heard] == [(Failed, "x-1", 1)]


def test_news_that_cannot_be_sent_are_an_error_of_the_future() -> None:
    """And an error that cannot be sent is told as text."""
    error = TaskError(object(), None, f"ValueError: {BAD}")
    said = [KeysDone([Done("a", 1, BAD), Done("b", 2**70, "int")], 3), KeyErred("c", "c", error, 3)]
    arrived, _ = through("ToClient", said)
    assert [(type(told), told.key, told.wish) for told in arrived] == [(KeyErred, key, 3) for key in "abc"]
    assert arrived[2].error.text == "ValueError: caf\\udce9"


def test_a_request_that_cannot_be_sent_is_answered() -> None:
    """With the error, and an answer that cannot be sent is one with an error."""
    _, parcels = through("FromClient", [Meet(4, "event-set", BAD, {})])
    assert [(told.rid, "could not be encoded" in told.error) for told in parcels.heard] == [(4, True)]
    arrived, _ = through("ToClient", [Answer(5, {1: object()})])
    assert [(told.rid, "could not be encoded" in told.error) for told in arrived] == [(5, True)]


def test_a_sum_of_sizes_beyond_64_bits_is_answered() -> None:
    """Each size is within its bounds, and all of them together are not; what else cannot be sent is an error."""
    frames = list(
        Parcels(Codec(messages.ToClient)).frames([Answer(1, {"total_memory": 3 * (2**63 - 1), "n": [2**63, -1]})])
    )
    (answer,) = Codec(messages.ToClient).decode(*frames[0])
    assert len(frames) == 1
    assert answer.value == {"total_memory": float(3 * (2**63 - 1)), "n": [2**63, -1]}
    deep: Any = 2**70
    for _ in range(100_000):
        deep = [deep]
    for value in (deep, "\ud800", 10**1000, object()):
        frames = list(Parcels(Codec(messages.ToClient)).frames([Answer(1, value)]))
        (answer,) = Codec(messages.ToClient).decode(*frames[0])
        assert "could not be encoded" in answer.error


def test_copies_are_announced_once_whatever_stands_with_them() -> None:
    """Announcements are counted by both sides, so that each arrives as one message."""
    arrived, _ = through("FromWorker", [AddKeys([KeyInfo("a", 10**30, BAD), KeyInfo("b", 1)])])
    assert arrived == [AddKeys([KeyInfo("a", 2**63 - 1, "caf\\udce9"), KeyInfo("b", 1)])]


def test_every_request_has_an_answer() -> None:
    """No message with a number is lost without a word: the list of requests is the protocol's."""
    for union, kind in CASES:
        if "rid" not in kind.__struct_fields__ or kind.__name__ in ("Took", "Withdraw"):
            continue
        fields = dict.fromkeys(kind.__struct_fields__)
        message = kind(**{**fields, "rid": 7, **{f: [BAD] for f in fields if f == "keys"}})
        for name, hint in typing.get_type_hints(kind).items():
            if name != "rid":
                setattr(
                    message, name, {} if typing.get_origin(hint) is dict else [] if "list" in str(hint) else object()
                )
        parcels = Parcels(Codec(None))
        sent = [m for body, _ in parcels.frames([message]) for m in msgspec.msgpack.decode(body)]
        told = [m.rid for m in parcels.heard] + [m[1] for m in sent]
        assert told == [7], (union, kind.__name__)


def test_frames_are_bounded() -> None:
    """By bytes, also within one message: what arrives is the same."""
    specs = [TaskSpec(f"x-{n}", "f", b"x" * 60_000, []) for n in range(3000)]
    parcels, receiver = Parcels(Codec(None)), Codec(messages.FromClient)
    arrived = []
    for body, buffers in parcels.frames(
        [Unwant(["a"]), Submit(specs, {"f": b""}, Options(), ["x-1"], 2), Unwant(["b"])]
    ):
        assert len(body) < FRAME_BYTES
        arrived += receiver.decode(body, buffers)
    assert (arrived[0], arrived[-1]) == (Unwant(["a"]), Unwant(["b"]))
    assert join(arrived[1:-1]) == Submit(specs, {"f": b""}, Options(), ["x-1"], 2)


def test_frames_are_bounded_by_what_travels_beside_them() -> None:
    """Large buffers count; one that is larger than a frame stands alone."""
    block = memoryview(bytearray(24 << 20))
    said = [Meet(n, "queue-put", "q", {}, Blob([b"", *[block] * (4 if n == 3 else 1)])) for n in range(6)]
    frames = list(Parcels(Codec(None)).frames(said))
    sizes = [sum(len(buffer) for buffer in buffers) for _, buffers in frames]
    assert sum(size > FRAME_BYTES for size in sizes) == 1
    assert sum(sizes) == 9 * len(block)


def test_a_message_of_too_many_buffers_is_refused_alone() -> None:
    """With words, to who sent it."""
    said = [Meet(1, "queue-put", "q", {}, Blob([b""] * (COUNT_LIMIT + 1))), Unwant(["a"])]
    arrived, parcels = through("FromClient", said)
    assert arrived == [Unwant(["a"])]
    assert "buffers" in parcels.heard[0].error


@given(st.lists(st.integers(0, 3000), max_size=5), st.integers(1, 40))
def test_what_is_split_says_the_same(sizes: list[int], most: int) -> None:
    """All items, in order, none twice."""
    message = Unwant([f"{n}-{size}" for n, size in enumerate(sizes)])
    parts = list(pieces(message, most_items=most))
    assert [key for part in parts for key in part.keys] == message.keys
    assert all(count(part) <= most for part in parts)


def test_many_small_messages_are_several_frames() -> None:
    """So that nothing has to be encoded twice where they are large."""
    said = [Unwant([f"{n}"]) for n in range(3 * MANY + 1)]
    frames = list(Parcels(Codec(None)).frames(said))
    assert len(frames) == 4


def test_what_a_message_causes_here_closes_its_link() -> None:
    """An exception of whoever handles it ends the link with the words, and no other."""

    async def check() -> list[str]:
        told: list[str] = []
        loop = asyncio.get_running_loop()

        def fail(link: Link, heard: list[Any]) -> None:
            raise ZeroDivisionError("as if by a bug")

        here = Identity("scheduler", "s", b"s" * 32, {"client": messages.FromClient})
        there = Identity("client", "c", b"s" * 32, {"scheduler": messages.ToClient})
        ours, theirs = socket.socketpair()
        _, server = await loop.connect_accepted_socket(
            lambda: Link(here, False, lambda link: None, fail, lambda link, why: told.append(why)), ours
        )
        _, link = await loop.create_connection(
            lambda: Link(there, True, lambda link: None, lambda *args: None, lambda link, why: told.append("gone")),
            sock=theirs,
        )
        async with asyncio.timeout(10):
            await link.ready
            link.send(Unwant(["a"]))
            while len(told) < 2:
                await asyncio.sleep(0.01)
        assert server.closed
        return told

    assert any("as if by a bug" in why for why in asyncio.run(check()))
