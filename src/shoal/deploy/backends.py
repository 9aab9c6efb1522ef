"""What a local cluster consists of: a head process, or objects in this one."""

from __future__ import annotations

import json
import select
import subprocess
import sys
from time import monotonic
from typing import Any

from shoal import config, errors
from shoal.programs.scheduler import SchedulerProgram
from shoal.programs.worker import WorkerProgram
from shoal.shell.addresses import Listening


class HeadProcess:
    """A process of its own with the scheduler and the nannies in it.

    It ends when its stdin closes, however this process ends, and takes all it started with it. It is in a session of
    its own, so that Ctrl-C in the user's terminal interrupts the user's program and not the cluster.

    Parameters
    ----------
    options
        For ``programs/head.py``.
    env
        Environment over all else.
    """

    def __init__(self, options: dict[str, Any], env: dict[str, str]) -> None:
        self.addresses: list[str] = []
        self._options, self._env = options, env
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def start(self, timeout: float) -> None:
        """Start it, and wait until all workers are up.

        Raises
        ------
        StartError
            With the reason that the process gave.
        """
        self._process = subprocess.Popen(
            [sys.executable, "-m", "shoal.programs.head"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=config.effective_environment(self._env),
            start_new_session=True,
        )
        try:
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps(self._options).encode() + b"\n")
            self._process.stdin.flush()
            self.addresses = self._read_answer(self._process, timeout)
        except BaseException:
            self.close()
            raise

    def _read_answer(self, process: subprocess.Popen[bytes], timeout: float) -> list[str]:
        assert process.stdout is not None
        due = monotonic() + timeout
        ready, _, _ = select.select([process.stdout], [], [], max(0.0, due - monotonic()))
        line = process.stdout.readline() if ready else b""
        if not line:
            what = "ended" if ready else f"did not answer within {timeout:g} s"
            raise errors.StartError(f"the head process of the cluster {what}; see its log above")
        answer = json.loads(line)
        if "error" in answer:
            kind = getattr(errors, answer["kind"], errors.StartError)
            raise kind(f"the cluster did not start: {answer['error']}")
        addresses: list[str] = answer["addresses"]
        return addresses

    def close(self, timeout: float = 15.0) -> None:
        """End it; returns once all its processes are gone."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.close()
        except BrokenPipeError:
            pass  # it has ended already
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


class InProcess:
    """A scheduler and workers on one event loop of this process, joined by memory; tasks run in threads.

    Parameters
    ----------
    options
        As for the head process.
    secret
        The cluster's secret.
    """

    def __init__(self, options: dict[str, Any], secret: bytes) -> None:
        self.addresses: list[str] = []
        self.pid = None
        self.scheduler: SchedulerProgram | None = None
        self.workers: list[WorkerProgram] = []
        self._options, self._secret = options, secret

    async def start(self) -> None:
        """Start all of it on the current loop."""
        options = self._options
        listen = ["inproc://", f"tcp://{options['host']}:"]
        self.scheduler = SchedulerProgram(self._secret)
        try:
            await self.scheduler.start([listen[0], f"{listen[1]}{options['port']}"])
            self.addresses = self.scheduler.addresses
            for name in options["names"]:
                worker = WorkerProgram(
                    self.addresses,
                    self._secret,
                    name=name,
                    nthreads=options["nthreads"],
                    memory_limit=options["memory_limit"],
                    resources=options["resources"],
                    executors=options["executors"],
                    local_directory=options["local_directory"],
                )
                self.workers.append(worker)
                await worker.start(Listening([listen[0]]), also=[f"{listen[1]}0"])
            await self.scheduler.wait_for_workers(len(self.workers))
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """End all of it."""
        for worker in self.workers:
            await worker.close("the cluster closed")
        if self.scheduler is not None:
            await self.scheduler.close("the cluster closed")
