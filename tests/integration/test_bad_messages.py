"""One bad message costs the link that it came on; a program that ends by a bug says so, and leaves its story."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from shoal import Client
from shoal.errors import ShoalError
from shoal.messages import OUTBOUND
from shoal.security import read_scheduler_file
from shoal.shell.link import Identity, Link
from shoal.shell.network import dial
from tests.integration.helpers import until

COMMAND = [sys.executable, "-m", "shoal"]
OPTIONS = [0, 0, None, False, None, "", False, None, None, None]


def submit(*tasks: Any, wants: Any = ("a",), options: Any = OPTIONS) -> list[Any]:
    return ["Submit", list(tasks), {}, options, list(wants), 0, 0.0]


def register(**changes: Any) -> list[Any]:
    fields = {
        "name": "w", "slot": "slot", "addresses": ["tcp://127.0.0.1:9"], "nthreads": 1, "memory": 10**9, "pid": 1,
        "host": "h", "directory": "", "resources": None, "executors": None,
    }  # fmt: skip
    return ["RegisterWorker", *{**fields, **changes}.values()]


ME = ["RegisterClient", "x"]
#: What a peer says that has the secret: its role, and its messages.
ATTACKS: list[tuple[str, list[Any]]] = [
    ("client", [ME, submit(["a", "", 5, [], 0, None])]),
    ("client", [ME, submit(["a", "", None, [], 0, None])]),
    ("client", [ME, submit(["a", "", [b"x"], [], 0, None])]),
    ("client", [ME, submit(["", "", b"x", [], 0, None])]),
    ("client", [ME, submit(["a", "unknown function", b"x", [], 0, None])]),
    ("client", [ME, submit(["a", "", b"x", ["a"], 0, None])]),
    ("client", [ME, submit(["a", "", b"x", ["b"], 0, None], ["b", "", b"x", ["a"], 0, None])]),
    ("client", [ME, submit(["a", "", b"x", [], 0, None], options=[0, -1, *OPTIONS[2:]])]),
    ("client", [ME, submit(["a", "", b"x", [], 0, None], options=[0, 0, None, False, {"GPU": -1.0}, *OPTIONS[5:]])]),
    ("client", [ME, submit(["a", "", b"x", [], 0, None], options=[2**63, *OPTIONS[1:]])]),
    ("client", [ME, submit(["(", "", b"x", [], 0, None], wants=["("])]),
    ("client", [ME, ["Query", 1, "who_has", {"keys": 5}], ["Query", 2, "identity", {"n_workers": "x"}]]),
    ("client", [ME, ["Query", 1, "why", {"key": None}], ["Query", 1, "story", {"keys": [[]]}]]),
    ("client", [ME, ["Meet", 1, "queue-put", "q", {"most": "x"}, b"", []]]),
    ("client", [ME, ["Meet", 1, "semaphore-acquire", "s", {"most": None, "lease": [], "timeout": "x"}, None, []]]),
    ("client", [ME, ["Meet", 1, "event-wait", "s", {"timeout": float("nan")}, None, []]]),
    ("client", [ME, ["Meet", 1, "metadata-set", "", {"names": [[]], "value": 1}, None, []]]),
    ("client", [ME, ["Replicate", 1, ["a"], -1, None, 0], ["Rebalance", 1, ["a"], [5]]]),
    ("client", [ME, ["Retire", 1, None, {"n": "x"}, True, True, False, None, ""]]),
    ("client", [ME, ["Retire", 1, None, {"target": [], "key": 7}, True, True, False, float("inf"), ""]]),
    ("client", [ME, ["RegisterPlugin", 1, "nonsense", "name", 5, False], ["Subscribe", 5, True]]),
    ("client", [ME, ["ManageMemory", 1, "nonsense"], ["Took", 99], ["Withdraw", 99], ["Cancel", ["no"], True, None]]),
    ("client", [["Submit", [], {}, OPTIONS, [], 0, 0.0], ME]),
    ("worker", [register(nthreads=0)]),
    ("worker", [register(nthreads=10**9)]),
    ("worker", [register(resources={"GPU": -1.0})]),
    ("worker", [register(resources={"GPU": float("nan")})]),
    ("worker", [register(memory=-1)]),
    ("worker", [register(addresses=[])]),
    ("worker", [register(executors={"io": 0})]),
    ("worker", [register(), ["Finished", [["a", 1, -5, "int", 0.0, 0.0, None, -1, 0]]]]),
    ("worker", [register(), ["Heartbeat", {"memory": 5}], ["Heartbeat", {"memory": {"process": []}}]]),
    ("worker", [register(), ["Answer", 77, None, None], ["StealAnswer", "a", 3, True], ["Missing", "a", ["x"], ["y"]]]),
    ("worker", [register(), ["DataPut", "nobody", [["a", 5, "", 0]], 1], ["Leaving", 7], ["NotCopied", "a", "", True]]),
    ("worker", [register(), register(name="again")]),
    ("nanny", [["RegisterNanny", "n", "h", -1, ""]]),
    ("nanny", [["RegisterNanny", "n", "h", 1, ""], ["WorkerDied", "x", "", ["a"], False, True, "", "nonsense", 0, []]]),
    ("nanny", [["Leaving", 3], ["RegisterNanny", "n", "h", 1, ""], ["Leaving", 3], ["Answer", 1, 5, None]]),
]  # fmt: skip


class Cluster:
    """A scheduler and a worker, each a process that a user started."""

    def __init__(self, path: Path) -> None:
        self.file = path / "scheduler.json"
        self.log, self.worker_log = path / "scheduler.log", path / "worker.log"
        self.env = {**os.environ, "DASK_TEMPORARY_DIRECTORY": str(path)}
        listen = ["--host", "127.0.0.1", "--port", "0", "--scheduler-file", str(self.file)]
        self.scheduler = self._run(["scheduler", *listen], self.log)
        until(self.file.exists)
        self.worker = self._run(["worker", "--scheduler-file", str(self.file), "--nthreads", "1"], self.worker_log)

    def _run(self, arguments: list[str], log: Path) -> subprocess.Popen[bytes]:
        with log.open("wb") as file:
            return subprocess.Popen([*COMMAND, *arguments], stderr=file, env=self.env)

    def client(self) -> Client:
        return Client(scheduler_file=str(self.file))

    async def attack(self, role: str, messages: list[Any]) -> str:
        """Say this, as a peer that has the secret; return why the link was closed, if it was within a moment."""
        addresses, secret = read_scheduler_file(self.file)
        identity = Identity(role, f"{role}-{uuid4().hex}", secret, {"scheduler": OUTBOUND[role]})
        closed: list[str] = []
        link = await dial(
            addresses,
            lambda: Link(
                identity, True, lambda link: None, lambda link, heard: None, lambda link, why: closed.append(why)
            ),
            10,
            identity,
        )
        for message in messages:
            link.send(message)
        for _ in range(10):
            await asyncio.sleep(0.02)
            if closed:
                break
        link.close("enough")
        await asyncio.sleep(0.02)
        return closed[0]

    def end(self) -> None:
        for process in (self.worker, self.scheduler):
            if process.poll() is None:
                process.terminate()
            process.wait(20)


@pytest.fixture
def cluster(tmp_path: Path, nothing_is_left: None) -> Iterator[Cluster]:
    """One of the commands."""
    cluster = Cluster(tmp_path)
    try:
        yield cluster
    finally:
        cluster.end()


def test_bad_messages_of_a_peer_with_the_secret(cluster: Cluster) -> None:
    """Harm that peer alone: clients, the scheduler and the worker go on, and the log says what was wrong."""
    with cluster.client() as client:
        before = client.submit(abs, -1, key="before")
        assert before.result(30) == 1
        for role, messages in ATTACKS:
            asyncio.run(cluster.attack(role, messages))
            assert cluster.scheduler.poll() is None, (messages, cluster.log.read_text())
            assert client.submit(abs, -2, pure=False).result(30) == 2, messages
        assert before.result(5) == 1
        assert cluster.worker.poll() is None
        assert list(client.has_what()) == list(client.scheduler_info()["workers"])
        until(lambda: len(client.scheduler_info()["workers"]) == 1)
    log = cluster.log.read_text()
    assert "Expected `int` >= 1" in log
    assert "TaskSpec.payload is no payload" in log


def leave(how: str) -> None:
    if how == "exit":
        sys.exit(3)
    raise KeyboardInterrupt


async def leave_later(how: str) -> None:
    await asyncio.sleep(0)
    leave(how)


@pytest.mark.parametrize("function", [leave, leave_later])
@pytest.mark.parametrize("how", ["exit", "interrupt"])
def test_functions_that_would_end_a_program(cluster: Cluster, function: Any, how: str) -> None:
    """Are answered with an error, on the scheduler, on workers and on nannies."""
    expected = SystemExit if how == "exit" else KeyboardInterrupt
    with cluster.client() as client:
        client.wait_for_workers(1, timeout=30)
        for call in (client.run_on_scheduler, client.run, lambda *args: client.run(*args, nanny=True)):
            with pytest.raises((expected, ShoalError)):
                call(function, how)
        assert client.run(function, how, wait=False) is None
        assert client.submit(abs, -2).result(30) == 2
    assert cluster.scheduler.poll() is None
    assert cluster.worker.poll() is None


def break_core(dask_scheduler: Any) -> None:
    """Have it fail at the next turn."""

    def handle(events: Any, now: float) -> None:
        raise ZeroDivisionError("as if by a bug")

    dask_scheduler.core.handle = handle


def test_a_scheduler_that_ends_by_a_bug(cluster: Cluster) -> None:
    """Has a status, and a story whose path is in its last line; the worker and the client are told why it ended."""
    with cluster.client() as client:
        client.wait_for_workers(1, timeout=30)
        with pytest.raises(ShoalError, match="as if by a bug"):
            client.run_on_scheduler(break_core)
    assert cluster.scheduler.wait(20) == 70
    last = cluster.log.read_text().strip().splitlines()[-1]
    assert last.startswith("scheduler ended: the scheduler failed, which is a bug in shoal: ZeroDivisionError")
    path = Path(last.partition("its story is in ")[2].rstrip(")"))
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    story = path.read_text()
    assert "as if by a bug" in story
    assert "CallDone" in story
    assert cluster.worker.wait(20) == 1
    assert "as if by a bug" in cluster.worker_log.read_text().strip().splitlines()[-1]


def stop_loop(dask_scheduler: Any) -> None:
    asyncio.get_running_loop().stop()


async def cancel_all(dask_scheduler: Any) -> None:
    for task in asyncio.all_tasks():
        task.cancel()


@pytest.mark.parametrize("function", [stop_loop, cancel_all])
def test_a_scheduler_whose_loop_is_interrupted(cluster: Cluster, function: Any) -> None:
    """Its worker and its client are told that it did not end on purpose."""
    with cluster.client() as client:
        client.wait_for_workers(1, timeout=30)
        with contextlib.suppress(ShoalError, asyncio.CancelledError):
            client.run_on_scheduler(function)
        assert cluster.scheduler.wait(20) == 1
        assert cluster.worker.wait(20) == 1
        with pytest.raises(ShoalError, match="interrupted by an error"):
            client.scheduler_info()
    assert "interrupted by an error" in cluster.worker_log.read_text().strip().splitlines()[-1]


def test_a_scheduler_that_is_killed(cluster: Cluster) -> None:
    """Its workers end with a status that says so, and say why."""
    with cluster.client() as client:
        client.wait_for_workers(1, timeout=30)
        cluster.scheduler.kill()
        assert cluster.worker.wait(30) == 1
    assert "ended: the link to the scheduler broke" in cluster.worker_log.read_text().strip().splitlines()[-1]
