"""Worker processes as their nanny has them: three ways to start one, its pipes, its exit.

``spawn`` executes a fresh interpreter for each. ``forkserver`` executes one for each environment, which has
imported what a worker needs, and forks that. ``fork`` forks the nanny's own process: quick, and safe only where no
other thread of it holds a lock at that moment. The environment is there at exec time with the first two.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import select
import signal
import socket
import subprocess
from typing import Any, ClassVar, Final

from shoal import config
from shoal.errors import ConfigurationError, StartError
from shoal.shell import standard
from shoal.shell.interpreter import command

#: Exit code of a process of which it is not known.
_UNKNOWN: Final = 255
#: Seconds that a process that forks workers may take to end.
_ENDING: Final = 3.0
METHODS: Final = ("spawn", "forkserver", "fork")


class Exit:
    """How a process ended."""

    __slots__ = ("code", "peak", "signal")

    def __init__(self, status: int, peak: int) -> None:
        code = os.waitstatus_to_exitcode(status)
        self.code: int | None = code if code >= 0 else None
        self.signal: int | None = -code if code < 0 else None
        #: The most bytes of memory that it had; 0 where that is not known.
        # (The system counts that of who started it too.)
        self.peak = peak if peak > resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 else 0


class Child:
    """A worker process.

    Parameters
    ----------
    pid
        Its process id.
    pipes
        Ends of its pipes.
    exited
        Resolved once it is gone and joined.
    """

    def __init__(self, pid: int, pipes: Pipes, exited: asyncio.Future[Exit]) -> None:
        self.pid, self.exited = pid, exited
        #: Means this process and no other, also when its number is given away again.
        self._descriptor: int | None = None
        if not exited.done():
            try:
                self._descriptor = os.pidfd_open(pid)
            except ProcessLookupError:
                pass  # it has ended, and that is about to be told
        self.report, self.output = pipes.report[0], pipes.output[0]
        self._pipes = pipes

    @property
    def alive(self) -> bool:
        return not self.exited.done()

    @property
    def gone(self) -> bool:
        """Whether it has ended, as the system says; who joins it may say so later."""
        if self._descriptor is None:
            return True
        poll = select.poll()
        poll.register(self._descriptor, select.POLLIN)
        return bool(poll.poll(0))

    def assume_gone(self) -> None:
        """Nobody says how it ended, and nobody will."""
        if not self.exited.done():
            self.exited.set_result(Exit(_UNKNOWN << 8, 0))

    def signal(self, number: int) -> None:
        """Send a signal; nothing happens if it is gone."""
        if self._descriptor is not None:
            try:
                signal.pidfd_send_signal(self._descriptor, number)
            except ProcessLookupError:
                pass  # it is gone

    def end_group(self) -> None:
        """End what it started and left behind."""
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass  # there is nothing (any more)

    def close(self) -> None:
        """Let go of the pipes."""
        self._pipes.close()
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


class Pipes:
    """What connects a worker process with its nanny.

    Parameters
    ----------
    options
        Handed to the process.
    recorder
        Descriptor of shared memory that it writes to.
    """

    def __init__(self, options: dict[str, Any], recorder: int) -> None:
        made: list[int] = [recorder]
        try:
            #: What is never written to: it breaks when the nanny is gone.
            self.lifeline = _pipe(made)
            self.report = _pipe(made)
            self.output = _pipe(made)
            self.options = os.memfd_create("shoal-options")
            made.append(self.options)
            with open(self.options, "wb", closefd=False) as file:
                file.write(json.dumps(options).encode())
            self.recorder = recorder
            for descriptor in (self.report[0], self.output[0]):
                os.set_blocking(descriptor, False)
        except BaseException:
            for descriptor in made:
                os.close(descriptor)
            raise

    @property
    def theirs(self) -> list[int]:
        """The descriptors that the process gets: stdin, stderr, report, options, recorder."""
        return [self.lifeline[0], self.output[1], self.report[1], self.options, self.recorder]

    def started(self) -> None:
        """The process has its own copies, or there is none; that of the recorder is closed too."""
        for descriptor in self.theirs:
            os.close(descriptor)

    def close(self) -> None:
        for descriptor in (self.lifeline[1], self.report[0], self.output[0]):
            os.close(descriptor)


def _pipe(made: list[int]) -> tuple[int, int]:
    ends = os.pipe()
    made += ends
    return ends


def start_method() -> str:
    """How worker processes are started, from the configuration.

    Raises
    ------
    ConfigurationError
        If there is no such way.
    """
    method = str(config.get("distributed.worker.multiprocessing-method", "forkserver"))
    if method not in METHODS:
        raise ConfigurationError(
            f"distributed.worker.multiprocessing-method must be one of {', '.join(METHODS)}, got {method!r}"
        )
    return method


class Starter:
    """Starts the worker processes of one nanny, one after another.

    Parameters
    ----------
    method
        One of :data:`METHODS`.
    """

    def __init__(self, method: str) -> None:
        self.method = method
        self._server: ForkServer | None = None

    async def start(self, options: dict[str, Any], env: dict[str, str], recorder: int) -> Child:
        """Start a process with ``env`` as its environment; ``options`` are for its ``worker_main``.

        ``recorder``, a descriptor, is closed here, whatever comes of it.

        Raises
        ------
        StartError
            If there cannot be one, with the reason.
        """
        standard.ensure()
        try:
            pipes = Pipes(options, recorder)
        except Exception as error:
            raise StartError(f"could not be started: {error}") from error
        pipes_are_used = False
        try:
            if self.method == "spawn":
                pid, exited = _spawn(pipes, env)
            elif self.method == "fork":
                pid, exited = _fork(pipes, env)
            else:
                pid, exited = await self._server_for(env).fork(pipes)
            pipes_are_used = True
        except StartError:
            raise
        except Exception as error:  # of the system, or the environment cannot be passed on
            raise StartError(f"could not be started: {error}") from error
        finally:
            pipes.started()
            if not pipes_are_used:
                pipes.close()
        return Child(pid, pipes, exited)

    def abandon(self) -> None:
        """The process that forks workers does not answer: the next worker is forked by another."""
        if self._server is not None:
            self._server.abandon()

    def _server_for(self, env: dict[str, str]) -> ForkServer:
        found = ForkServer.of(env)
        if found is not self._server:
            self._release()
            found.users += 1
            self._server = found
        return found

    def _release(self) -> None:
        if self._server is not None:
            self._server.users -= 1
            if not self._server.users:
                self._server.end()

    async def close(self) -> None:
        """End what no other nanny of this process uses. The workers must have ended."""
        server = self._server
        if server is not None:
            self._release()
            self._server = None
            if server.ended:
                await server.gone()


def _spawn(pipes: Pipes, env: dict[str, str]) -> tuple[int, asyncio.Future[Exit]]:
    stdin, stderr, *passed = pipes.theirs
    process = subprocess.Popen(
        command("shoal.programs.worker_main", *map(str, passed)),
        stdin=stdin, stdout=standard.output(), stderr=stderr, env=env, pass_fds=passed, process_group=0,
    )  # fmt: skip
    process.returncode = 0  # it is joined below
    return process.pid, _watch(process.pid)


def _fork(pipes: Pipes, env: dict[str, str]) -> tuple[int, asyncio.Future[Exit]]:
    from shoal.programs.worker_main import become

    pid = os.fork()
    if not pid:
        become(pipes.theirs, env)
    return pid, _watch(pid)


def _watch(pid: int) -> asyncio.Future[Exit]:
    """Join a child of this process as soon as it is gone; no polling."""
    loop = asyncio.get_running_loop()
    exited: asyncio.Future[Exit] = loop.create_future()
    try:
        descriptor = os.pidfd_open(pid)
    except OSError:  # it cannot be watched, so it is not to be
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise

    def join() -> None:
        loop.remove_reader(descriptor)
        os.close(descriptor)
        try:
            _, status, usage = os.wait4(pid, 0)
        except ChildProcessError:  # the program ignores SIGCHLD: the system has joined it, and says nothing
            status, peak = _UNKNOWN << 8, 0
        else:
            peak = usage.ru_maxrss * 1024
        if not exited.done():
            exited.set_result(Exit(status, peak))

    loop.add_reader(descriptor, join)
    return exited


class ForkServer:
    """A process that forks workers, with one environment.

    It ends when nobody in this process uses it any more, or this process is gone; its workers end with it.
    """

    #: Those of this process, by event loop and environment.
    _all: ClassVar[dict[Any, ForkServer]] = {}

    def __init__(self, connection: socket.socket, pid: int) -> None:
        self._loop = asyncio.get_running_loop()
        #: Nannies that start their workers here.
        self.users = 0
        self.ended = False
        self._waiting: list[asyncio.Future[int]] = []
        self._children: dict[int, asyncio.Future[Exit]] = {}
        self._socket = connection
        self.pid = pid
        try:
            #: Resolved once its process is gone and joined.
            self.exited = _watch(pid)
        except BaseException:
            connection.close()
            raise
        self._socket.setblocking(False)
        self._loop.add_reader(self._socket.fileno(), self._on_news)

    @classmethod
    def adopt(cls, env: dict[str, str], connection: socket.socket, pid: int) -> ForkServer:
        """Take a server that was planted before the loop ran for the one of ``env``."""
        found = cls._all[_key(env)] = cls(connection, pid)
        return found

    @classmethod
    def of(cls, env: dict[str, str]) -> ForkServer:
        """The server for an environment, started if there is none."""
        found = cls._all.get(_key(env))
        if found is None or found.ended:
            found = cls._all[_key(env)] = cls(*_execute(env))
        return found

    async def fork(self, pipes: Pipes) -> tuple[int, asyncio.Future[Exit]]:
        """Fork a worker.

        Raises
        ------
        StartError
            If the server ended.
        """
        if self.ended:
            raise StartError("the process that forks workers has ended")
        asked = json.dumps(config.import_path()).encode()
        socket.send_fds(self._socket, [asked], pipes.theirs)
        answer: asyncio.Future[int] = self._loop.create_future()
        self._waiting.append(answer)
        pid = await answer  # one that is cancelled stays in line: its process is ended when it comes
        return pid, self._children[pid]

    def abandon(self) -> None:
        """Have others fork from now on; this one goes on with the workers that it has."""
        for key in [key for key, server in self._all.items() if server is self]:
            del self._all[key]

    async def gone(self) -> None:
        """Wait until its process is gone; one that does not end by itself is killed."""
        await asyncio.wait([self.exited], timeout=_ENDING)
        if not self.exited.done():
            os.kill(self.pid, signal.SIGKILL)  # it is not joined yet, so it is this process and no other
            await self.exited

    def _on_news(self) -> None:
        try:
            data = self._socket.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.end()
            return
        news = json.loads(data)
        if "status" in news:
            child = self._children.pop(news["pid"])
            if not child.done():
                child.set_result(Exit(news["status"], news["peak"]))
            return
        answer = self._waiting.pop(0)
        if "error" in news:
            if not answer.done():
                answer.set_exception(StartError(f"could not be started: {news['error']}"))
            return
        self._children[news["pid"]] = self._loop.create_future()
        if answer.done():  # whoever asked has given up
            os.kill(news["pid"], signal.SIGKILL)  # it is joined only after this process was told of it
        else:
            answer.set_result(news["pid"])

    def end(self) -> None:
        """Nobody needs it any more, or it is gone."""
        if self.ended:
            return
        self.ended = True
        self._loop.remove_reader(self._socket.fileno())
        self._socket.close()
        for key in [key for key, server in self._all.items() if server is self]:
            del self._all[key]
        self.exited.add_done_callback(self._on_exit)

    def _on_exit(self, exited: asyncio.Future[Exit]) -> None:
        end = exited.result()
        how = f"exited with status {end.code}" if end.signal is None else f"was killed by signal {end.signal}"
        for answer in [answer for answer in self._waiting if not answer.done()]:
            answer.set_exception(StartError(f"could not be started: the process that forks workers {how}"))
        for child in [child for child in self._children.values() if not child.done()]:
            child.set_result(Exit(signal.SIGKILL, 0))  # they ended with it
        self._waiting.clear()
        self._children.clear()


def _key(env: dict[str, str]) -> Any:
    return id(asyncio.get_running_loop()), tuple(sorted(env.items()))


def closing_timeout() -> float:
    """Seconds that a local cluster may take to end before its processes are killed."""
    name = "shoal.deploy.closing-timeout"
    return config.seconds(config.get(name, 10.0), name) or 10.0


def end_descendants(pid: int) -> None:
    """Kill all that a process has started, and what these have; those that are gone are."""
    import psutil

    try:
        below = psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        return  # it is gone, and what it had started belongs to nobody that can be told
    for process in below:
        try:
            if os.getpgid(process.pid) == process.pid:
                os.killpg(process.pid, signal.SIGKILL)
            process.kill()
        except (psutil.Error, OSError):
            continue  # it has ended meanwhile


def fork_imports() -> list[str]:
    """Modules that a fork server imports."""
    return [str(name) for name in config.get("shoal.nanny.fork-imports", []) or []]


def _execute(env: dict[str, str]) -> tuple[socket.socket, int]:
    """Start a fork server with an environment."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        with theirs:
            process = subprocess.Popen(
                command("shoal.programs.fork_server", str(theirs.fileno()), *fork_imports()),
                stdin=subprocess.DEVNULL, stdout=standard.output(), stderr=standard.error(),
                env=env, pass_fds=[theirs.fileno()], process_group=0,
            )  # fmt: skip
    except BaseException:
        ours.close()
        raise
    process.returncode = 0  # it is joined by who has it
    return ours, process.pid
