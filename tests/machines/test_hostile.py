"""Any message that can be decoded, in any state: no core raises, or it costs the peer that said it and nobody else."""

from __future__ import annotations

import typing
from collections import deque
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.core.client.reactor import ClientCore
from shoal.core.effects import CloseLink, Send, Stop
from shoal.core.events import LinkLost, LinkOpened, Received, Said
from shoal.core.framing import Codec, FramingError
from shoal.core.nanny.reactor import NannyCore
from shoal.core.scheduler.invariants import check
from shoal.messages import (
    INBOUND,
    OUTBOUND,
    NannyRegistered,
    Options,
    RegisterClient,
    RegisterNanny,
    RegisterWorker,
    Submit,
    TaskSpec,
)
from tests.hostile import structs
from tests.machines.harness import Cluster

#: Names that mean something in the state that the tests begin with.
KNOWN = ["a", "b", "c", "d", "w1", "w2", "x1", "s", "f", "tcp://w1", "host", "unknown"]


def message_of(union: Any) -> st.SearchStrategy[Any]:
    """A message of a direction, with values that may mean something, or are out of every range."""
    return st.one_of(*(structs(kind, True, 0, KNOWN) for kind in typing.get_args(union)))


def decoded(union: Any, messages: list[Any]) -> list[Any]:
    """Those of the messages that come through the wire."""
    found = []
    for message in messages:
        try:
            body, buffers = Codec(union).encode([message])
            found += Codec(union).decode(body, [memoryview(bytes(buffer)) for buffer in buffers])
        except (FramingError, TypeError, ValueError, OverflowError, RecursionError):
            continue
    return found


def _is_lawful(message: Any) -> bool:
    """Whether a peer with the secret may do that to others."""
    if isinstance(message, RegisterWorker):
        return message.slot != "x1" and message.slot in KNOWN  # it takes the place of the worker before it
    return type(message).__name__ in ("Shutdown", "Restart", "Retire", "Cancel", "RunFunction")


class Attacked(Cluster):
    """What is said to the attacker goes nowhere."""

    def line(self, source: str, target: str) -> deque[Any]:
        return deque() if target == "x1" else super().line(source, target)


FIRST = {
    "client": RegisterClient("x"),
    "worker": RegisterWorker("x1", "x1", ["tcp://x1"], 2, 0, 1, "host", "", {"GPU": 1.0}),
    "nanny": RegisterNanny("x1", "host", 1, "tcp://n"),
}


@pytest.mark.parametrize("role", ["client", "worker", "nanny"])
@settings(max_examples=40)
@given(data=st.data())
def test_a_hostile_peer_harms_nobody_else(role: str, data: Any) -> None:
    """Of a cluster at work: its state stays right, and what others want is computed."""
    cluster = Attacked(2, seed=data.draw(st.integers(0, 5)))
    cluster.submit({"a": [], "b": ["a"], "c": ["a"], "d": ["b", "c"]}, ["d", "b"])
    for _ in range(data.draw(st.integers(0, 12))):
        cluster.step()
    core = cluster.scheduler
    core.handle([LinkOpened(role, "x1")], cluster.now)
    if data.draw(st.booleans()):
        core.handle([Received("x1", [FIRST[role]])], cluster.now)
    gone = False
    for messages in data.draw(st.lists(st.lists(message_of(INBOUND[role]), min_size=1, max_size=3), max_size=5)):
        sent = decoded(INBOUND[role], messages)
        if any(_is_lawful(message) for message in sent):
            continue
        effects = core.handle([Received("x1", sent)], cluster.now)
        check(core.state)
        for effect in effects:
            if isinstance(effect, Send) and effect.to != "x1":
                cluster.line("s", effect.to).append(effect.message)
        assert not any(isinstance(effect, Stop) for effect in effects)
        closed = {effect.to for effect in effects if isinstance(effect, CloseLink)}
        assert closed <= {"x1"}, closed
        gone = gone or bool(closed)
        for _ in range(3):
            cluster.step()
        if gone:
            break
    cluster.feed(LinkLost(role, "x1", "gone"))
    check(core.state)
    cluster.settle()
    states = cluster.states()
    assert (states["b"], states["d"]) == ("memory", "memory")


@settings(max_examples=40)
@given(data=st.data())
def test_a_hostile_scheduler_breaks_no_client(data: Any) -> None:
    """Its futures are in some state or other, and the next message is heard."""
    core = ClientCore("c")
    core.handle([Said(Submit([TaskSpec("a", "f", b"", [])], {"f": b""}, Options(), ["a"]))], 0.0)
    for message in decoded(OUTBOUND["client"], data.draw(st.lists(message_of(OUTBOUND["client"]), max_size=6))):
        core.handle([Received("", [message])], 0.0)


@settings(max_examples=40)
@given(data=st.data())
def test_a_hostile_scheduler_breaks_no_nanny(data: Any) -> None:
    """Whatever it orders."""
    core = NannyCore("n")
    core.handle([Received("", [NannyRegistered("s")])], 0.0)
    for message in decoded(OUTBOUND["nanny"], data.draw(st.lists(message_of(OUTBOUND["nanny"]), max_size=6))):
        core.handle([Received("", [message])], 0.0)
