"""One worker process of a nanny, from its start to its exit.

Whatever fails on the way (no directory, no descriptor, no memory, no process that forks, no pipe) is a start that
failed, with words; nothing is left of it, and the nanny's core decides what follows.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from time import monotonic
from typing import Any, Final

from shoal.core.events import ChildExited
from shoal.errors import StartError
from shoal.programs.processes import Child, Starter
from shoal.shell import standard
from shoal.shell.recorder import Recorder
from shoal.shell.usage import most_resident_bytes, resident_bytes

#: Lines of a worker's stderr that are told when it died, and the most characters of each.
LAST_LINES, LONGEST_LINE = 20, 1000
#: Seconds that the news of an exit may take to come from the process that joins it.
_NEWS: Final = 3.0


class Incarnation:
    """One worker process.

    Parameters
    ----------
    number
        Which incarnation of the worker it is.
    starter
        Starts processes.
    """

    def __init__(self, number: int, starter: Starter) -> None:
        self.number = number
        self._starter = starter
        self._loop = asyncio.get_running_loop()
        #: The process, once there is one.
        self.child: Child | None = None
        #: A signal that came before there was a process to send it to.
        self._early = 0
        self._abandoned = asyncio.Event()

    @property
    def alive(self) -> bool:
        """Whether there is a process."""
        return self.child is not None and self.child.alive

    def signal(self, number: int) -> None:
        """Send it a signal. One that is killed before it is there is not waited for."""
        if self.child is not None:
            self.child.signal(number)
            return
        self._early = number
        if number == signal.SIGKILL:
            self._abandoned.set()

    async def run(
        self,
        options: dict[str, Any],
        env: dict[str, str],
        threads: int,
        on_report: Callable[[bytes], None],
        on_memory: Callable[[int], float],
        end_group: bool,
    ) -> ChildExited:
        """Start it, follow it until it has exited, and say how it did.

        Parameters
        ----------
        options, env
            For the process.
        threads
            How many run tasks in it.
        on_report
            Called with what it says.
        on_memory
            Called with the bytes that it holds now and then; returns the seconds until the next time.
        end_group
            Whether what it started ends with it.

        Raises
        ------
        StartError
            If there cannot be a process, or it cannot be followed.
        """
        with ExitStack() as stack:
            try:
                memory = os.memfd_create("shoal-running")
                recorder = _recorder(memory, threads)
                stack.callback(recorder.close)
                child = self.child = await self._start(options, env, memory)
            except OSError as error:
                raise StartError(f"could not be started: {error}") from error
            stack.callback(child.close)
            try:
                return await self._follow(child, recorder, on_report, on_memory, end_group)
            finally:
                if child.alive:  # it could not be followed
                    child.signal(signal.SIGKILL)
                    await _until_gone(child)

    async def _start(self, options: dict[str, Any], env: dict[str, str], memory: int) -> Child:
        starting = asyncio.ensure_future(self._starter.start(options, env, memory))
        abandoned = asyncio.ensure_future(self._abandoned.wait())
        try:
            await asyncio.wait([starting, abandoned], return_when=asyncio.FIRST_COMPLETED)
        finally:
            abandoned.cancel()
            if not starting.done():
                starting.cancel()
        if not starting.done():
            await asyncio.wait([starting])
            if starting.cancelled():
                self._starter.abandon()
                raise StartError("could not be started: the process that forks workers does not answer")
        child = await starting
        if self._early:
            child.signal(self._early)
        return child

    async def _follow(
        self,
        child: Child,
        recorder: Recorder,
        on_report: Callable[[bytes], None],
        on_memory: Callable[[int], float],
        end_group: bool,
    ) -> ChildExited:
        output = Output(child.output)

        def read_report() -> None:
            try:
                data = os.read(child.report, 65536)
            except BlockingIOError:
                return
            if data:
                on_report(data)
            else:
                self._loop.remove_reader(child.report)

        self._loop.add_reader(child.output, output.read)
        try:
            self._loop.add_reader(child.report, read_report)
            peak = await self._until_exit(child, on_memory)
        finally:
            for descriptor in (child.report, child.output):
                self._loop.remove_reader(descriptor)
        read_report()
        output.finish()
        if end_group:
            child.end_group()
        end = child.exited.result()
        return ChildExited(
            self.number, end.code, end.signal, recorder.running(), max(peak, end.peak), list(output.lines)
        )

    async def _until_exit(self, child: Child, on_memory: Callable[[int], float]) -> int:
        """Look at its memory until it is gone; return the most that was seen."""
        gone_since: float | None = None
        peak, pause = 0, on_memory(0)
        while not child.exited.done():
            await asyncio.wait([child.exited], timeout=pause)
            if child.exited.done():
                break
            try:
                resident = resident_bytes(child.pid)
                peak = max(peak, most_resident_bytes(child.pid), resident)
                pause = on_memory(resident)
            except (OSError, IndexError):
                pass  # it ended between the two, and its exit is about to be reported; or there is no descriptor
            if child.gone:  # and whoever joins it has not said so: it is stopped, or hangs
                gone_since = gone_since or monotonic()
                if monotonic() - gone_since > _NEWS:
                    child.assume_gone()
                    self._starter.abandon()
        return peak


def _recorder(memory: int, threads: int) -> Recorder:
    try:
        return Recorder(memory, threads)
    except BaseException:
        os.close(memory)
        raise


async def _until_gone(child: Child) -> None:
    await asyncio.wait([child.exited], timeout=_NEWS)
    if not child.exited.done():
        child.assume_gone()


class Output:
    """What a worker writes to stderr: passed on to this process's own, and the last lines kept."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._rest = b""
        self.lines: deque[str] = deque(maxlen=LAST_LINES)

    def read(self) -> bool:
        """Take what there is; False if there is no more for now."""
        try:
            data = os.read(self._descriptor, 65536)
        except BlockingIOError:
            return False
        standard.pass_on(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        self._rest = self._rest[-LONGEST_LINE:]
        self._keep(lines)
        return bool(data)

    def _keep(self, lines: list[bytes]) -> None:
        self.lines.extend(text[:LONGEST_LINE] for line in lines if (text := line.decode(errors="replace").rstrip()))

    def finish(self) -> None:
        """Take the rest of what a process wrote that is gone."""
        while self.read():
            pass
        self._keep([self._rest])
