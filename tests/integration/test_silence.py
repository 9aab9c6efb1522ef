"""Machines that vanish without a word: network namespaces whose cables are pulled; a second of silence is borne."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.helpers import until
from tests.integration.namespaces import Machines, why_not

#: Seconds of silence (``distributed.comm.timeouts.tcp``), and the most that it may take until something is done.
SILENCE, LATEST = 1, 30

HEAD = """
import os, signal, time, shoal
def until(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)
def wait_for(name):
    until(lambda: os.path.exists({go!r} + name), 60)
c = shoal.Client(scheduler_file={file!r}, timeout=20)
c.wait_for_workers(2, timeout=30)
"""

FIRST = """
a = c.submit(lambda: b"x" * 3_000_000, workers=["B"], pure=False)
c.submit(len, c.submit(bytes, 100, workers=["B"], pure=False), workers=["C"], pure=False).result(timeout=20)
shoal.wait(a)
print("ready")
wait_for("parted")
b = c.submit(len, a, workers=["C"], pure=False)
assert b.result(timeout=30) == 3_000_000
print("came")

held = c.submit(os.urandom, 1000, workers=["B"], pure=False)
before = held.result()
pid = c.submit(os.getpid, workers=["B"], pure=False).result()
os.kill(pid, signal.SIGSTOP)
time.sleep({silent})
assert len(c.scheduler_info()["workers"]) == 2
os.kill(pid, signal.SIGCONT)
assert c.submit(lambda value: value, held, workers=["B"], pure=False).result(timeout=30) == before
print("kept")

def count():
    return c.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.program.core.state.clients))
until(lambda: count() == 2)
print("two")
until(lambda: count() == 1)
print("one")
"""

SECOND = """
a = c.submit(lambda: bytes(1_000_000), workers=["B"], allow_other_workers=True, pure=False)
shoal.wait(a)
print("ready")
until(lambda: len(c.scheduler_info()["workers"]) == 1)
assert c.submit(len, a, pure=False).result(timeout=30) == 1_000_000
print("again")
try:
    c.submit(time.sleep, 99, pure=False).result()
except Exception as error:
    print("ended:", error)
"""


class Fleet:
    """A scheduler on A, workers on B and C, and programs with a client."""

    def __init__(self, machines: Machines, directory: Path) -> None:
        self.machines, self.directory = machines, directory
        self.file = str(directory / "scheduler.json")
        where = ("--scheduler-file", self.file, "--host")
        self.scheduler = machines.shoal("A", "scheduler", *where, machines.address("A"), "--port", "0")
        until((directory / "scheduler.json").exists)
        self.workers = {
            name: machines.shoal(name, "worker", *where, machines.address(name), "--nthreads", "1", "--name", name)
            for name in "BC"
        }

    def client(self, name: str, code: str) -> subprocess.Popen[bytes]:
        """Run a program that has a client."""
        text = (HEAD + code).format(go=f"{self.directory}/", file=self.file, silent=3 * SILENCE)
        return self.machines.python(name, text)


@pytest.fixture
def fleet(nothing_is_left: None, tmp_path: Path) -> Iterator[Fleet]:
    reason = why_not()
    if reason:
        pytest.skip(reason)
    environ = {"DASK_DISTRIBUTED__COMM__TIMEOUTS__TCP": f"{SILENCE}s"}
    with Machines("ABCD", tmp_path, environ) as machines:
        yield Fleet(machines, tmp_path)


def test_a_cut_between_workers_a_stopped_worker_and_a_client_that_vanishes(fleet: Fleet) -> None:
    """The value comes all the same; nothing of a stopped worker is lost; what the client held is let go of."""
    machines = fleet.machines
    program = fleet.client("A", FIRST)
    machines.until(program, "ready")
    machines.part("B", "C")
    (fleet.directory / "parted").touch()
    machines.until(program, "kept", 60)
    other = fleet.client("D", "f = c.submit(bytes, 9, pure=False); shoal.wait(f); print('held'); time.sleep(99)")
    machines.until(other, "held")
    machines.until(program, "two")
    machines.pull("D")
    machines.until(program, "one")
    assert program.wait(20) == 0


def test_the_machines_of_a_worker_and_of_the_scheduler_vanish(fleet: Fleet) -> None:
    """What the worker held is computed again elsewhere; clients and workers end, and say why."""
    machines = fleet.machines
    program = fleet.client("D", SECOND)
    machines.until(program, "ready")
    machines.pull("B")
    machines.until(program, "again", 60)
    machines.pull("A")
    began = time.monotonic()
    assert "nothing was heard of its machine" in machines.until(program, "ended:")
    for name in "BC":
        fleet.workers[name].wait(LATEST)
    assert time.monotonic() - began < LATEST
    assert "nothing was heard of its machine" in machines.said(fleet.workers["C"])
