"""``Nanny`` as an object: every parameter, call and attribute, with real processes."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import socket
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import dask
import psutil
import pytest

from shoal import Client, Nanny, NannyPlugin, Scheduler, Worker, rpc
from shoal.errors import ConfigurationError, ConnectError, HandshakeError, StartError, UsageError
from tests.integration.functions import inc, pid, slow_inc
from tests.integration.test_cuts import Proxy


def run(coroutine: Coroutine[Any, Any, None], seconds: float = 60) -> None:
    asyncio.run(asyncio.wait_for(coroutine, seconds))


def variable(name: str) -> str | None:
    return os.environ.get(name)


async def eventually(condition: Any, seconds: float = 20) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


def test_start_kill_start_restart_close() -> None:
    """With what can be seen of it at each step."""

    async def work() -> None:
        async with Scheduler() as scheduler, Client(scheduler.address, asynchronous=True) as client:
            nanny = await Nanny(scheduler.address, nthreads=2, name="alice", memory_limit="1 GiB")
            assert nanny.status == "running"
            assert nanny.is_alive()
            assert nanny.process is not None
            first, address, directory = nanny.pid, nanny.worker_address, Path(nanny.worker_dir)
            assert os.path.isdir(directory)
            assert directory.parent == Path(nanny.local_directory)
            assert (nanny.nthreads, nanny.memory_manager.memory_limit) == (2, 2**30)
            assert nanny.memory_manager.memory_terminate_fraction == 0.95
            assert nanny.Worker is Worker
            assert list(await client.nthreads()) == [address]
            await nanny.kill()
            assert not nanny.is_alive()
            assert nanny.pid is None
            assert not psutil.pid_exists(first)
            assert not scheduler.core.state.workers
            await eventually(lambda: not os.path.exists(directory))
            assert await nanny.instantiate() == "running"
            assert await nanny.instantiate() == "running"
            second = nanny.pid
            assert second not in (None, first)
            assert await nanny.restart() == "OK"
            assert nanny.pid not in (None, first, second)
            assert await client.submit(inc, 1) == 2
            os.kill(nanny.pid, signal.SIGKILL)
            await eventually(lambda: any("signal 9" in text for _, text in nanny.get_logs()))
            assert await nanny.instantiate() == "running"
            last, scratch = nanny.pid, Path(nanny.local_directory)
            await asyncio.gather(*(nanny.close() for _ in range(5)))
            assert nanny.status == "closed"
            assert not psutil.pid_exists(last)
            assert not os.path.exists(scratch)
            await nanny.close()

    run(work())


def test_n10_a_hundred_restarts_at_once_end_with_one_worker() -> None:
    """With random timeouts, of which some pass."""

    async def work() -> None:
        rng = random.Random(1)
        async with (
            Scheduler() as scheduler,
            Nanny(scheduler.address, nthreads=1) as nanny,
            Client(scheduler.address, asynchronous=True) as client,
        ):
            calls = [nanny.restart(timeout=rng.choice([0.0, 0.001, 0.05, 10, 20])) for _ in range(100)]
            told = await asyncio.gather(*calls)
            assert set(told) <= {"OK", "timed out"}
            assert "OK" in told
            await nanny.instantiate()
            assert await client.submit(pid) == nanny.pid
            assert len(scheduler.core.state.workers) == 1
            mine = psutil.Process().children(recursive=True)
            assert sum(child.cmdline()[:1] != [] and "shoal worker" in child.cmdline()[0] for child in mine) == 1

    run(work())


@pytest.mark.parametrize("seed", range(4))
def test_n6_kill_restart_and_close_at_the_same_time(seed: int) -> None:
    """From several callers: it ends as the last wish says."""

    async def work() -> None:
        rng = random.Random(seed)
        async with Scheduler() as scheduler:
            nanny = await Nanny(scheduler.address, nthreads=1)
            calls: list[Any] = []
            for _ in range(10):
                what = rng.choice(["kill", "restart", "instantiate"])
                calls.append(asyncio.ensure_future(getattr(nanny, what)()))
                await asyncio.sleep(rng.choice([0, 0, 0.02]))
            if seed % 2:
                calls.append(asyncio.ensure_future(nanny.close()))
            else:
                calls.append(asyncio.ensure_future(nanny.kill()))
            await asyncio.gather(*calls, return_exceptions=True)
            assert not nanny.is_alive()
            if not seed % 2:
                assert await nanny.instantiate() == "running"
            await nanny.close()
            await eventually(lambda: not scheduler.core.state.workers)

    run(work())


def test_one_that_does_not_reconnect_closes_with_its_worker() -> None:
    """But not for a restart; and one that closes gracefully does so when the worker goes."""

    async def work() -> None:
        async with Scheduler() as scheduler:
            nanny = await Nanny(scheduler.address, nthreads=1, reconnect=False)
            assert await nanny.restart() == "OK"
            os.kill(nanny.pid, signal.SIGKILL)
            await nanny.finished()
            await eventually(lambda: nanny.status == "closed")
            leaving = await Nanny(scheduler.address, nthreads=1)
            await leaving.close_gracefully(reason="enough")
            assert leaving.is_alive()
            os.kill(leaving.pid, signal.SIGTERM)
            await eventually(lambda: leaving.status == "closed")
            await eventually(lambda: not scheduler.core.state.nannies)

    run(work())


def test_the_environment_is_the_workers_alone() -> None:
    """By precedence; also of several that start at the same moment; this process's own does not change (C13)."""
    settings = {"distributed.nanny.environ": {"A": 1, "B": 2, "C": 3, "GONE": None}}

    async def work(monkeypatch: pytest.MonkeyPatch) -> None:
        async with Scheduler() as scheduler, Client(scheduler.address, asynchronous=True) as client:
            before = dict(os.environ)
            nannies = [
                Nanny(scheduler.address, nthreads=1, name=str(n), env={"A": f"own {n}", "NUMBER": n}) for n in range(4)
            ]
            await asyncio.gather(*nannies)
            assert dict(os.environ) == before
            for n, nanny in enumerate(nannies):
                found = await client.run(dict, workers=[nanny.worker_address])
                assert found
                (env,) = (await client.run(all_variables, workers=[nanny.worker_address])).values()
                assert (env["A"], env["NUMBER"]) == (f"own {n}", str(n))
                assert (env["B"], env["C"]) == ("of the process", "3")
                assert "GONE" not in env
                assert env["PYTHONHASHSEED"] == "6640"
                assert env["OMP_NUM_THREADS"] == "1"
                assert {name: nanny.env[name] for name in ("A", "B", "C")} == {name: env[name] for name in "ABC"}
            await asyncio.gather(*(nanny.close() for nanny in nannies))
            assert dict(os.environ) == before

    with dask.config.set(settings), pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("B", "of the process")
        run(work(monkeypatch))

    async def refuse() -> None:
        async with Scheduler() as scheduler:
            with pytest.raises(TypeError, match=r"distributed\.nanny\.environ"):
                await Nanny(scheduler.address, nthreads=1)

    with dask.config.set({"distributed.nanny.environ": "A=1"}):
        run(refuse())


def all_variables() -> dict[str, str]:
    return dict(os.environ)


def configured(key: str) -> Any:
    import dask.config

    return dask.config.get(key, None)


def test_the_configuration_reaches_the_worker_with_what_is_laid_over_it() -> None:
    """But for what belongs to a client."""

    async def work() -> None:
        overlay = {"mine": {"b": 20}, "distributed.nanny.environ": {"FROM_OVERLAY": 1}, "array.chunk-size": "5 MB"}
        async with (
            Scheduler() as scheduler,
            Nanny(scheduler.address, nthreads=1, config=overlay),
            Client(scheduler.address, asynchronous=True, set_as_default=False) as client,
        ):
            ask = [("mine.a", 1), ("mine.b", 20), ("array.chunk-size", "5 MB")]
            for key, value in ask:
                assert await client.submit(configured, key, pure=False) == value
            assert await client.submit(variable, "FROM_OVERLAY") == "1"

    with dask.config.set({"mine": {"a": 1, "b": 2}, "scheduler": "threads"}):
        run(work())


def test_ports_are_taken_from_those_that_are_given() -> None:
    """Numbers, ranges, collections; taken ones are passed over while there are others."""
    with socket.socket() as taken, socket.socket() as probe:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        busy = taken.getsockname()[1]
        probe.bind(("127.0.0.1", 0))
        free = probe.getsockname()[1]
        probe.close()

        async def work() -> None:
            async with Scheduler() as scheduler:
                async with Nanny(scheduler.address, nthreads=1, worker_port=[busy, free]) as nanny:
                    assert nanny.worker_address == f"tcp://127.0.0.1:{free}"
                async with Worker(scheduler.address, nthreads=1, port=f"{free}:{free}") as worker:
                    assert worker.address == f"tcp://127.0.0.1:{free}"
                with pytest.raises(ConfigurationError, match=rf"{busy}.*in use"):
                    await Worker(scheduler.address, nthreads=1, port=busy)
                with dask.config.set({"shoal.nanny.crash-limit": 1}), pytest.raises(StartError, match="in use"):
                    await Nanny(scheduler.address, nthreads=1, worker_port=busy)
                for port in ("nine", [70_000], "9:1", [], True):
                    with pytest.raises(ConfigurationError, match="port"):
                        Nanny(scheduler.address, worker_port=port)
                contact = f"tcp://localhost:{free}"
                async with Worker(scheduler.address, nthreads=1, port=free, contact_address=contact) as worker:
                    assert worker.address == contact
                listen = f"tcp://127.0.0.1:{free}"
                async with Nanny(scheduler.address, nthreads=1, listen_address=listen) as nanny:
                    assert nanny.worker_address == listen
                async with Nanny(scheduler.address, nthreads=1, interface="lo") as nanny:
                    assert nanny.worker_address.startswith("tcp://127.0.0.1:")
                for options, match in [
                    ({"interface": "none0"}, "interface 'none0'"),
                    ({"protocol": "ucx"}, "protocol"),
                    ({"host": "h", "interface": "lo"}, "host or interface"),
                    ({"memory_limit": "1 kB"}, "memory_limit"),
                    ({"nthreads": 0}, "nthreads"),
                    ({"worker_class": int}, "worker_class"),
                    ({"death_timeout": "soon"}, "death_timeout"),
                ]:
                    with pytest.raises(UsageError, match=match):
                        Nanny(scheduler.address, **options)
                with pytest.warns(DeprecationWarning, match="loop"):
                    Nanny(scheduler.address, loop=asyncio.get_running_loop())

        run(work())


def test_the_schedulers_file_may_appear_late(tmp_path: Path) -> None:
    """And is waited for no longer than ``death_timeout``."""

    async def work() -> None:
        file = tmp_path / "late.json"
        nanny = Nanny(scheduler_file=file, nthreads=1)
        starting = asyncio.ensure_future(nanny.start())
        await asyncio.sleep(0.1)
        async with Scheduler(scheduler_file=file) as scheduler:
            await starting
            assert len(scheduler.core.state.workers) == 1
            await nanny.close()
        with pytest.raises(TimeoutError, match=r"did not appear within 0\.1 s"):
            await Nanny(scheduler_file=tmp_path / "never.json", nthreads=1, death_timeout="100 ms")
        with pytest.raises(TimeoutError, match="nobody could be reached"):
            await Worker("tcp://127.0.0.1:1", nthreads=1, death_timeout=0.1)
        with pytest.raises(ConnectError):
            await Nanny("tcp://127.0.0.1:1", nthreads=1, death_timeout=0.1)

    run(work())


PRELOAD = """
import os
def dask_setup(server):
    with open({path!r}, "a") as file:
        file.write(type(server).__name__ + " setup\\n")
async def dask_teardown(server):
    with open({path!r}, "a") as file:
        file.write(type(server).__name__ + " teardown\\n")
"""
COMMAND = """
import click
@click.command()
@click.option("--word")
@click.argument("more", nargs=-1)
def dask_setup(server, word, more):
    with open({path!r}, "a") as file:
        file.write(f"{{word}} {{more}}\\n")
"""


def test_preloads_run_and_are_torn_down(tmp_path: Path) -> None:
    """In the scheduler, nanny and worker: files, source text, modules; with arguments for a click command."""
    path = tmp_path / "said"
    module = tmp_path / "preload_file.py"
    module.write_text(PRELOAD.format(path=str(path)))
    command = tmp_path / "preload_command.py"
    command.write_text(COMMAND.format(path=str(path)))

    async def work() -> None:
        async with (
            Scheduler(preload=str(module)) as scheduler,
            Nanny(
                scheduler.address,
                nthreads=1,
                preload=[str(module), str(command), "json"],
                preload_argv=[[], ["--word", "hello", "a", "b"], []],
                preload_nanny=PRELOAD.format(path=str(path)),
            ),
        ):
            said = path.read_text().splitlines()
            assert said == ["Scheduler setup", "Nanny setup", "Worker setup", "hello ('a', 'b')"]
        assert path.read_text().splitlines()[4:] == ["Nanny teardown", "Worker teardown", "Scheduler teardown"]
        async with Scheduler() as scheduler:
            with pytest.raises(ModuleNotFoundError) as caught:
                await Nanny(scheduler.address, nthreads=1, preload_nanny="no_such_module")
            assert "in the preload 'no_such_module'" in str(caught.value.__notes__)
            with pytest.raises(ConfigurationError, match="preload_argv"):
                Nanny(scheduler.address, preload=["json"], preload_argv=[["a"], ["b"]])

    run(work())


class LoudWorker(Worker):
    """A worker of a user's own."""

    def __init__(self, *args: Any, loudness: int = 0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.loudness = loudness


def loudness(dask_worker: Any) -> Any:
    return type(dask_worker).__name__, dask_worker.loudness, dask_worker.name


def test_a_worker_of_ones_own_class_with_arguments_of_its_own() -> None:
    """What the nanny does not know is handed on."""

    async def work() -> None:
        async with (
            Scheduler() as scheduler,
            Nanny(scheduler.address, nthreads=1, name="loud", worker_class=LoudWorker, loudness=11) as nanny,
            Client(scheduler.address, asynchronous=True) as client,
        ):
            assert nanny.Worker is LoudWorker
            assert list((await client.run(loudness)).values()) == [("LoudWorker", 11, "loud")]
            assert await nanny.restart() == "OK"
            assert list((await client.run(loudness)).values()) == [("LoudWorker", 11, "loud")]

    run(work())


class Simple(NannyPlugin):
    """Counts."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def setup(self, nanny: Any) -> None:
        self.seen.append("setup")

    async def teardown(self, nanny: Any) -> None:
        self.seen.append("teardown")


class Bare:
    """Has no base."""

    def setup(self, nanny: Any) -> None:
        nanny.bare = True


def test_plugins_of_one_nanny_functions_and_events() -> None:
    """``plugin_add``, ``plugin_remove``, ``run``, ``log_event``."""

    async def work() -> None:
        async with (
            Scheduler() as scheduler,
            Nanny(scheduler.address, nthreads=1) as nanny,
            Client(scheduler.address, asynchronous=True) as client,
        ):
            plugin = Simple()
            name = await nanny.plugin_add(plugin)
            assert nanny.plugins == {name: plugin}
            await nanny.plugin_remove(name)
            assert plugin.seen == ["setup", "teardown"]
            with pytest.raises(KeyError, match="no nanny plugin"):
                await nanny.plugin_remove(name)
            with pytest.warns(DeprecationWarning, match="Bare"):
                await nanny.plugin_add(Bare(), "bare")
            assert await nanny.run(lambda dask_nanny: dask_nanny.bare) is True
            nanny.log_event("from nanny", {"x": 1})
            with pytest.raises(TypeError, match="plain values"):
                nanny.log_event("from nanny", object())
            while not await client.get_events("from nanny"):
                await asyncio.sleep(0.01)
            found = await client.run(lambda dask_worker: dask_worker.name, nanny=True)
            assert list(found.values()) == [nanny.name]

    run(work())


def test_n5_the_scheduler_goes_away_while_a_worker_starts() -> None:
    """The nanny ends, and its process with it."""

    async def work() -> None:
        scheduler = await Scheduler()
        nanny = Nanny(scheduler.address, nthreads=1, preload=["import time; time.sleep(0.5)"])
        starting = asyncio.ensure_future(nanny.start())
        await asyncio.sleep(0.2)
        await scheduler.close()
        with pytest.raises((StartError, ConnectError, TimeoutError)):
            await starting
        assert nanny.status == "closed"

    with dask.config.set({"shoal.comm.resume-timeout": "200ms"}):
        run(work(), 30)


def test_n1_a_restart_of_a_worker_that_is_closing_brings_another() -> None:
    """The worker never closes its nanny (C4)."""

    async def work() -> None:
        async with (
            Scheduler() as scheduler,
            Nanny(scheduler.address, nthreads=1) as nanny,
            Client(scheduler.address, asynchronous=True) as client,
        ):
            for _ in range(5):
                os.kill(nanny.pid, signal.SIGTERM)
                before = nanny.pid
                await client.restart()
                assert await client.submit(pid, pure=False) == nanny.pid != before

    run(work())


def test_sixteen_nannies_of_one_process_start_at_the_same_time() -> None:
    """And close so."""

    async def work() -> None:
        async with Scheduler() as scheduler, Client(scheduler.address, asynchronous=True) as client:
            nannies = [Nanny(scheduler.address, nthreads=1, memory_limit=0) for _ in range(16)]
            await asyncio.gather(*nannies)
            assert len(await client.nthreads()) == 16
            found = await client.gather(client.map(inc, range(100)))
            assert found == list(range(1, 101))
            await asyncio.gather(*(nanny.close() for nanny in nannies))
            assert not scheduler.core.state.workers

    run(work())


def test_what_a_scheduler_writes_is_json(tmp_path: Path) -> None:
    """Other programs read it too."""

    async def work() -> None:
        async with Scheduler(scheduler_file=tmp_path / "s.json") as scheduler:
            assert json.loads((tmp_path / "s.json").read_text())["address"] == scheduler.address

    run(work())


def test_c12_a_cut_of_a_second_restarts_nobody() -> None:
    """Neither the nanny nor its worker ends; what ran goes on."""

    async def work() -> None:
        async with (
            Scheduler() as scheduler,
            Proxy(scheduler.address) as proxy,
            Nanny(proxy.address, nthreads=1) as nanny,
            Client(scheduler.address, asynchronous=True) as client,
        ):
            before = nanny.pid
            futures = client.map(slow_inc, range(40), pure=False)
            await asyncio.sleep(0.1)
            proxy.down = True
            proxy.cut()
            await asyncio.sleep(1.0)
            proxy.down = False
            assert await client.gather(futures) == list(range(1, 41))
            assert nanny.pid == before
            assert nanny.core.restarts == 0

    run(work())


def test_c16_a_restart_that_takes_longer_than_its_timeout_is_told_and_goes_on(tmp_path: Path) -> None:
    """The worker is there a little later all the same."""

    async def work() -> None:
        async with (
            Scheduler() as scheduler,
            Nanny(scheduler.address, nthreads=1) as nanny,
            Client(scheduler.address, asynchronous=True) as client,
        ):
            os.kill(nanny.pid, signal.SIGSTOP)
            with pytest.raises(TimeoutError, match=r"did not come back within 0\.01 s"):
                await client.restart(timeout=0.01)
            assert await client.submit(inc, 1) == 2
            os.kill(nanny.pid, signal.SIGSTOP)
            assert await nanny.restart(timeout=0.01) == "timed out"
            assert await nanny.instantiate() == "running"
            assert await client.submit(inc, 2) == 3
            os.kill(nanny.pid, signal.SIGSTOP)
            name = nanny.name
            assert await client.restart_workers([name], timeout=0.01, raise_for_error=False) == {name: "timed out"}
            assert await client.submit(inc, 3) == 4

    run(work())


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_workers_run_on_the_event_loop_that_is_configured(loop: str) -> None:
    """One that there is not is named."""

    async def work() -> None:
        async with (
            Scheduler() as scheduler,
            Nanny(scheduler.address, nthreads=1),
            Client(scheduler.address, asynchronous=True) as client,
        ):
            (found,) = (await client.run(loop_name)).values()
            assert found.startswith(loop)

    with dask.config.set({"distributed.admin.event-loop": loop}):
        run(work())


async def loop_name() -> str:
    return type(asyncio.get_running_loop()).__module__


def test_calls_that_a_nanny_answers_at_its_own_address() -> None:
    """With the cluster's secret alone; what goes wrong there is raised here."""

    async def work() -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            free = probe.getsockname()[1]
        async with Scheduler() as scheduler, Client(scheduler.address, asynchronous=True) as client:
            nanny = await Nanny(scheduler.address, nthreads=1, name="alice", port=[free])
            assert nanny.address == f"tcp://127.0.0.1:{free}"
            assert nanny.port == free
            info = await client.scheduler_info()
            assert info["workers"][nanny.worker_address]["nanny"] == nanny.address
            async with rpc(nanny.address) as far:
                before = nanny.pid
                assert await far.restart(timeout=20) == "OK"
                assert nanny.pid != before
                await far.kill(timeout=5)
                assert not nanny.is_alive()
                assert await far.instantiate() == "running"
                identity = await far.identity()
                assert (identity["name"], identity["worker"]) == ("alice", nanny.worker_address)
                assert await far.run(function=os.getpid) == os.getpid()
                assert await far.plugin_add(plugin=Simple(), name="simple") == "simple"
                assert list(nanny.plugins) == ["simple"]
                await far.plugin_remove(name="simple")
                with pytest.raises(KeyError):
                    await far.plugin_remove(name="simple")
                assert isinstance(await far.get_logs(), list)
                with pytest.raises(UsageError, match="cannot 'fly'"):
                    await far.fly()
                await far.close_gracefully()
                assert await far.terminate() == "OK"
            await eventually(lambda: nanny.status == "closed")
            stranger = rpc(f"tcp://127.0.0.1:{free}", security={"secret": "another one than theirs"})
            async with Nanny(scheduler.address, nthreads=1, port=free):
                with pytest.raises(HandshakeError):
                    await stranger.identity()
            stranger.close()

    run(work())


def test_a_nanny_that_goes_during_a_restart_is_told_of_at_once() -> None:
    """Whoever asked for the restart does not wait for the timeout."""

    async def work() -> None:
        async with Scheduler() as scheduler, Client(scheduler.address, asynchronous=True) as client:
            nanny = await Nanny(scheduler.address, nthreads=1, name="alice")
            os.kill(nanny.pid, signal.SIGSTOP)
            asked = asyncio.ensure_future(client.restart_workers(["alice"], timeout=300))
            await asyncio.sleep(0.1)
            await nanny.close(timeout=0.1)
            assert await asked == {"alice": "removed"}

    run(work(), 30)
