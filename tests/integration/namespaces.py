"""Machines that are network namespaces on one bridge: cables can be pulled without a word."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self


def why_not() -> str:
    """Why this machine cannot make namespaces; empty where it can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "network namespaces need ip (iproute2)"
    name = f"shoal{os.getpid()}try"
    made = subprocess.run(["ip", "netns", "add", name], check=False, capture_output=True, text=True)
    if made.returncode:
        return f"no network namespaces here: {made.stderr.strip()}"
    try:
        line = f"ip netns exec {name} ip link add br0 type bridge"
        bridge = subprocess.run(line.split(), check=False, capture_output=True, text=True)
        return f"no bridges here: {bridge.stderr.strip()}" if bridge.returncode else ""
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)


class Machines:
    """Machines by one letter each, at ``10.77.0.1`` and so on, and what runs on them.

    Parameters
    ----------
    names
        A letter for each.
    directory
        For what the processes write.
    environ
        What their environment has beside this one's.
    """

    def __init__(self, names: str, directory: Path, environ: dict[str, str]) -> None:
        self.names, self.directory = names, directory
        self._environ = {**os.environ, **environ}
        self._prefix = f"shoal{os.getpid()}"
        self._processes: list[subprocess.Popen[bytes]] = []
        self._outputs: dict[int, Path] = {}

    def __enter__(self) -> Self:
        try:
            self._ip("netns add {H}")
            self._ip("-n {H} link add br0 type bridge")
            self._ip("-n {H} link set br0 up")
            for number, name in enumerate(self.names, 1):
                space = self._prefix + name
                self._ip(f"netns add {space}")
                self._ip(f"link add e{name} netns {space} type veth peer name p{name} netns {{H}}")
                self._ip(f"-n {{H}} link set p{name} master br0 up")
                self._ip(f"-n {space} link set lo up")
                self._ip(f"-n {space} addr add 10.77.0.{number}/24 dev e{name}")
                self._ip(f"-n {space} link set e{name} up")
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def _ip(self, line: str) -> None:
        subprocess.run(["ip", *line.format(H=self._prefix + "H").split()], check=True, capture_output=True)

    def address(self, name: str) -> str:
        return f"10.77.0.{self.names.index(name) + 1}"

    def pull(self, name: str) -> None:
        """Pull the cable of a machine."""
        self._ip(f"-n {{H}} link set p{name} nomaster")

    def part(self, *names: str) -> None:
        """These cannot reach each other any more."""
        for name in names:
            line = f"ip netns exec {self._prefix}H bridge link set dev p{name} isolated on"
            subprocess.run(line.split(), check=True)

    def start(self, name: str, *command: str) -> subprocess.Popen[bytes]:
        """Run a command on a machine."""
        output = self.directory / f"{name}-{len(self._processes)}"
        with output.open("wb") as file:
            process = subprocess.Popen(
                ["ip", "netns", "exec", self._prefix + name, *command],
                env=self._environ,
                stdout=file,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
            )
        self._processes.append(process)
        self._outputs[process.pid] = output
        return process

    def shoal(self, name: str, *args: str) -> subprocess.Popen[bytes]:
        """Run the command line on a machine."""
        return self.start(name, sys.executable, "-m", "shoal", *args)

    def python(self, name: str, code: str) -> subprocess.Popen[bytes]:
        """Run a program on a machine."""
        return self.start(name, sys.executable, "-u", "-c", code)

    def said(self, process: subprocess.Popen[bytes]) -> str:
        """What it wrote so far."""
        return self._outputs[process.pid].read_text(errors="replace")

    def until(self, process: subprocess.Popen[bytes], text: str, seconds: float = 30) -> str:
        """Wait until a process wrote ``text``; return all that it wrote."""
        deadline = time.monotonic() + seconds
        while text not in self.said(process):
            assert time.monotonic() < deadline, f"{text!r} was not said: {self.said(process)[-2000:]}"
            assert process.poll() is None or text in self.said(process), self.said(process)[-2000:]
            time.sleep(0.05)
        return self.said(process)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes[::-1]:
            if process.poll() is None:
                process.terminate()
        for process in self._processes[::-1]:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for name in self.names + "H":
            subprocess.run(["ip", "netns", "del", self._prefix + name], check=False, capture_output=True)
