"""Schedulers and workers that are started by a command, here or on another machine, and end with its stdin."""

from __future__ import annotations

import asyncio
import json
import shlex
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from shoal.deploy.spec import ProcessInterface
from shoal.errors import StartError
from shoal.security import pack

#: Seconds that a process may take to end before it is killed.
_ENDING = 20.0
_LAST_LINES = 15


class Running(ABC):
    """A process that was started, wherever that is."""

    def __init__(self, stdin: Any, stdout: Any, stderr: Any) -> None:
        self.stdin, self.stdout, self.stderr = stdin, stdout, stderr

    @abstractmethod
    async def wait(self) -> Any:
        """Wait until it has ended; return how."""

    @abstractmethod
    def kill(self) -> None:
        """End it."""

    async def close(self) -> None:  # noqa: B027 - there need not be anything
        """Let go of what led to it."""


class Command(ProcessInterface):
    """A ``shoal`` command that gets the secret by stdin, says on stdout where it is, and ends when stdin closes.

    Parameters
    ----------
    secret
        The cluster's secret.
    scheduler, name
        As for :class:`ProcessInterface`.
    timeout
        Seconds until it must have said where it is.
    """

    def __init__(self, secret: bytes, scheduler: str | None = None, name: Any = None, timeout: float = 60.0) -> None:
        super().__init__(scheduler, name)
        self._secret, self._timeout = secret, timeout
        self.addresses: list[str] = []
        self._running: Running | None = None
        self._watching: asyncio.Task[None] | None = None
        self._lines: list[str] = []
        self._said: asyncio.Task[None] | None = None

    @abstractmethod
    def arguments(self) -> list[str]:
        """Of the ``shoal`` command."""

    @abstractmethod
    async def launch(self, arguments: Sequence[str]) -> Running:
        """Start ``python -m shoal`` with these.

        Raises
        ------
        StartError
            If it cannot be started, with the reason.
        """

    async def start(self) -> None:
        """Start it, and wait until it is there.

        Raises
        ------
        StartError
            If it does not come up, with its last words.
        """
        self.status = "starting"
        running = self._running = await self.launch([*self.arguments(), "--with-stdin"])
        self._said = asyncio.create_task(self._listen(running.stderr))
        running.stdin.write(pack(self._secret).encode() + b"\n")
        try:
            async with asyncio.timeout(self._timeout):
                line = await running.stdout.readline()
        except TimeoutError:
            await self.close()
            raise StartError(f"{self!r} was not up within {self._timeout:g} s: {self._words()}") from None
        if not line:
            await self.close()
            raise StartError(f"{self!r} ended at once: {self._words()}")
        self.addresses = json.loads(line)["addresses"]
        self.address = self.addresses[0]
        self._watching = asyncio.create_task(self._watch(running))
        await super().start()

    async def _listen(self, stderr: Any) -> None:
        while line := await stderr.readline():
            text = line.decode(errors="replace").rstrip() if isinstance(line, bytes) else str(line).rstrip()
            self._lines = [*self._lines[-_LAST_LINES:], text]

    def _words(self) -> str:
        return " | ".join(self._lines) or "it said nothing"

    async def _watch(self, running: Running) -> None:
        await running.wait()
        if self.status == "running":
            self.status = "failed"
        self._ended.set()

    async def close(self) -> None:
        """End it; returns once it is gone."""
        running, self._running = self._running, None
        if running is not None:
            self.status = "closing"
            running.stdin.close()
            try:
                async with asyncio.timeout(_ENDING):
                    await running.wait()
            except TimeoutError:
                running.kill()
                await running.wait()
            for task in (self._watching, self._said):
                if task is not None:
                    await task
            await running.close()
        await super().close()


def options_of(given: Mapping[str, Any]) -> list[str]:
    """Options of a command: ``{"memory_limit": "1 GiB"}`` is ``--memory-limit "1 GiB"``; None is left out."""
    found: list[str] = []
    for name, value in given.items():
        option = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            found.append(option if value else "--no-" + option[2:])
        elif isinstance(value, dict):
            found += [option, " ".join(f"{key}={amount}" for key, amount in value.items())]
        elif isinstance(value, list | tuple):
            found += [part for one in value for part in (option, str(one))]
        elif value is not None:
            found += [option, str(value)]
    return found


def shell_line(python: str, arguments: Sequence[str]) -> str:
    """The line for a shell that runs ``python -m shoal`` with these arguments."""
    return shlex.join([python, "-m", "shoal", *arguments])
