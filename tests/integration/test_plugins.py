"""Plugins of workers, nannies and the scheduler; files; events."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
import zipfile
from pathlib import Path
from typing import Any

import pytest

from shoal import (
    Client,
    CondaInstall,
    Environ,
    LocalCluster,
    Nanny,
    NannyPlugin,
    PipInstall,
    Scheduler,
    SchedulerPlugin,
    UploadDirectory,
    Worker,
    WorkerPlugin,
)
from shoal.errors import UsageError
from shoal.plugins.builtin import ForwardLoggingPlugin
from tests.integration.functions import inc, leave, pid
from tests.integration.helpers import until


def mark(path: str, line: str) -> None:
    with open(path, "a") as file:
        file.write(f"{line}\n")


class Marking(WorkerPlugin):
    """Writes what happens to it into a file."""

    name = "marking"

    def __init__(self, path: Path, label: str = "", fails: bool = False) -> None:
        self.path, self.label, self.fails = str(path), label, fails

    def mark(self, what: str) -> None:
        mark(self.path, f"{self.label}{what}")

    async def setup(self, worker: Any) -> None:
        if self.fails:
            raise ZeroDivisionError("the set-up failed")
        await asyncio.sleep(0.01)
        self.worker = worker
        worker.marked = self.label or "yes"
        self.mark("setup")

    def teardown(self, worker: Any) -> None:
        self.mark("teardown")

    def transition(self, key: str, start: str, finish: str, **kwargs: Any) -> None:
        if key == "watched":
            self.mark(f"{start}->{finish}")


def marked(dask_worker: Any) -> Any:
    return getattr(dask_worker, "marked", None)


def lines(path: Path) -> list[str]:
    return path.read_text().split() if path.exists() else []


def test_a_plugin_of_workers_is_there_before_the_first_task_also_after_a_restart(
    client: Client, tmp_path: Path
) -> None:
    """Also after a restart. It hears of transitions, is replaced by name, torn down in the end."""
    path = tmp_path / "marks"
    found = client.register_plugin(Marking(path))
    assert set(found) == set(client.nthreads())
    assert set(client.run(marked).values()) == {"yes"}
    assert client.submit(inc, 1, key="watched").result(20) == 2
    until(lambda: "executing->none" in lines(path))
    client.restart()
    assert set(client.run(marked).values()) == {"yes"}
    client.register_plugin(Marking(path, "b"))
    assert set(client.run(marked).values()) == {"b"}
    assert lines(path).count("teardown") >= 2
    client.unregister_worker_plugin("marking")
    assert lines(path).count("bteardown") == 2
    with pytest.raises(UsageError, match="no worker plugin 'marking'"):
        client.unregister_worker_plugin("marking")


def test_a_plugin_that_fails_is_reported_to_whoever_registered_it(client: Client, tmp_path: Path) -> None:
    """And the workers go on, those that join later too."""
    with pytest.raises(ZeroDivisionError, match="set-up failed"):
        client.register_plugin(Marking(tmp_path / "marks", fails=True))
    assert client.submit(inc, 1).result(20) == 2
    client.restart()
    assert client.submit(inc, 2).result(20) == 3
    with pytest.raises(TypeError, match="no plugin"):
        client.register_plugin(object())
    with pytest.raises(ZeroDivisionError):
        client.register_plugin(FailsToStart())


class Duck:
    """A plugin of workers that does not say so."""

    def setup(self, worker: Any) -> None:
        worker.marked = "quack"


def test_a_plugin_without_a_base_is_accepted_with_a_warning(client: Client) -> None:
    """For now."""
    with pytest.warns(DeprecationWarning, match="Duck"):
        client.register_plugin(Duck(), name="duck")
    assert set(client.run(marked).values()) == {"quack"}


class FailsToStart(SchedulerPlugin):
    """One of the scheduler's."""

    async def start(self, scheduler: Any) -> None:
        raise ZeroDivisionError("no start")


class Census(SchedulerPlugin):
    """Writes down what happens at the scheduler."""

    name = "census"

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def write(self, *what: Any) -> None:
        mark(self.path, "-".join(map(str, what)))

    async def start(self, scheduler: Any) -> None:
        self.write("start", len(scheduler.core.state.workers))

    async def close(self) -> None:
        self.write("close")

    def add_worker(self, scheduler: Any, worker: str) -> None:
        self.write("add", worker)

    async def remove_worker(self, scheduler: Any, worker: str, *, stimulus_id: str, **kwargs: Any) -> None:
        self.write("remove", worker)

    def worker_died(self, scheduler: Any, death: dict[str, Any]) -> None:
        self.write("died", death["cause"], death["exitcode"], *death["running"])

    def add_client(self, scheduler: Any, client: str) -> None:
        self.write("client", client.split("-")[1])

    def transition(self, key: Any, start: str, finish: str, *args: Any, stimulus_id: str, **kwargs: Any) -> None:
        if key == "seen":
            self.write(start, finish)

    def update_graph(self, scheduler: Any, *, keys: set[Any], tasks: list[Any], **kwargs: Any) -> None:
        self.write("graph", len(tasks), *sorted(keys))

    def log_event(self, topic: str, msg: Any) -> None:
        if topic == "mine":
            self.write("event", msg)


def test_a_plugin_of_the_scheduler_hears_of_all(cluster: LocalCluster, client: Client, tmp_path: Path) -> None:
    """Workers, clients, graphs, transitions, events; until it is removed."""
    path = tmp_path / "census"
    client.register_plugin(Census(path))
    assert client.submit(inc, 1, key="seen").result(20) == 2
    client.log_event("mine", 5)
    with Client(cluster, name="second"):
        until(lambda: "client-second" in lines(path))
    client.restart_workers(list(client.nthreads())[:1])
    until(lambda: sum(line.startswith("add-") for line in lines(path)) == 1)
    found = lines(path)
    assert found[0] == "start-2"
    assert "graph-1-seen" in found
    assert "processing-memory" in found
    assert "event-5" in found
    assert sum(line.startswith("remove-") for line in found) == 1
    with pytest.raises(Exception, match="status 5"):
        client.submit(leave, 5, key="leaver").result(60)
    until(lambda: lines(path).count("died-exit-5-leaver") == 4)
    client.unregister_scheduler_plugin("census")
    assert lines(path)[-1] == "close"
    assert client.submit(inc, 5, key="more").result(20) == 6
    assert lines(path)[-1] == "close"


class OnNanny(NannyPlugin):
    """Notes the nanny's name."""

    restart = True

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    async def setup(self, nanny: Any) -> None:
        nanny.env["FROM_PLUGIN"] = nanny.name
        mark(self.path, f"setup-{nanny.name}")

    async def teardown(self, nanny: Any) -> None:
        mark(self.path, f"teardown-{nanny.name}")


def variable(name: str) -> str | None:
    return os.environ.get(name)


def test_a_plugin_of_nannies_is_there_before_their_worker_starts(tmp_path: Path) -> None:
    """In nannies that are there (whose workers it has restarted) and in those that join."""
    path = tmp_path / "marks"

    async def work() -> None:
        async with (
            Scheduler() as scheduler,
            Client(scheduler.address, asynchronous=True) as client,
            Nanny(scheduler.address, nthreads=1, name="one") as one,
        ):
            first = one.pid
            assert await client.register_plugin(OnNanny(path), "noting") == {"one": {"status": "OK"}}
            assert one.pid != first
            assert list(one.plugins) == ["noting"]
            async with Nanny(scheduler.address, nthreads=1, name="two") as two:
                second = two.pid
                found = await client.run(variable, "FROM_PLUGIN")
                assert sorted(found.values()) == ["one", "two"]
                assert two.pid == second, "its worker was restarted for a plugin that was there before"
            await client.unregister_worker_plugin("noting", nanny=True)
            assert not one.plugins

    asyncio.run(asyncio.wait_for(work(), 60))
    assert lines(path) == ["setup-one", "setup-two", "teardown-two", "teardown-one"]


def test_environment_variables_for_all_workers(client: Client) -> None:
    """Now, and after a restart."""
    before = set(client.run(os.getpid).values())
    client.register_plugin(Environ({"SHOAL_SAYS": 5}))
    assert set(client.run(variable, "SHOAL_SAYS").values()) == {"5"}
    assert not before & set(client.run(os.getpid).values())
    client.restart()
    assert set(client.run(variable, "SHOAL_SAYS").values()) == {"5"}


def use_module(name: str) -> Any:
    return __import__(name).VALUE


def test_a_file_is_uploaded_imported_replaced_and_there_after_a_restart(client: Client, tmp_path: Path) -> None:
    """Also an archive; also on the scheduler; a broken one is an error that names it."""
    module = tmp_path / "uploaded_a.py"
    module.write_text("VALUE = 1\n")
    client.upload_file(module)
    assert client.submit(use_module, "uploaded_a", pure=False).result(20) == 1
    assert client.run_on_scheduler(use_module, "uploaded_a") == 1
    module.write_text("VALUE = 22\n")
    client.upload_file(str(module))
    assert set(client.run(use_module, "uploaded_a").values()) == {22}
    archive = tmp_path / "uploaded_b.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("uploaded_package/__init__.py", "VALUE = 3\n")
    client.upload_file(archive)
    client.restart()
    assert set(client.run(use_module, "uploaded_package").values()) == {3}
    assert set(client.run(use_module, "uploaded_a").values()) == {22}
    (tmp_path / "uploaded_c.py").write_text("1 / 0\n")
    with pytest.raises(ZeroDivisionError) as caught:
        client.upload_file(tmp_path / "uploaded_c.py")
    assert "uploaded_c.py" in "".join(getattr(caught.value, "__notes__", []) or [str(caught.value)])


def test_a_directory_is_uploaded(client: Client, tmp_path: Path) -> None:
    """Without what is to be skipped; its modules are found where that was asked for."""
    root = tmp_path / "project_x"
    (root / ".git").mkdir(parents=True)
    (root / ".git" / "config").write_text("no")
    (root / "deep").mkdir()
    (root / "deep" / "data.txt").write_text("data")
    (root / "project_module.py").write_text("VALUE = 7\n")
    (root / "project_module.pyc").write_text("no")
    client.register_plugin(UploadDirectory(root, update_path=True, mode="all"))
    assert set(client.run(use_module, "project_module").values()) == {7}
    assert client.run_on_scheduler(use_module, "project_module") == 7
    client.restart()
    assert set(client.run(use_module, "project_module").values()) == {7}
    for found in client.run(_listing).values():
        assert found == ["deep/data.txt", "project_module.py"]
    with pytest.raises(UsageError, match="mode"):
        UploadDirectory(root, mode="nobody")
    with pytest.raises(UsageError, match="directory"):
        UploadDirectory(root / "none")


def _listing(dask_worker: Any) -> list[str]:
    root = Path(dask_worker.nanny_directory) / "project_x"
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.suffix in (".txt", ".py", ".pyc"))


def test_pip_installs_once_and_says_why_it_cannot(client: Client, tmp_path: Path) -> None:
    """A package of our own, from a directory, into one that is thrown away."""
    wheel, target = tmp_path / "tiny_pkg-1.0-py3-none-any.whl", tmp_path / "target"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("tiny_pkg/__init__.py", "VALUE = 11\n")
        file.writestr("tiny_pkg-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-pkg\nVersion: 1.0\n")
        file.writestr("tiny_pkg-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr("tiny_pkg-1.0.dist-info/RECORD", "")
    client.register_plugin(PipInstall([str(wheel)], pip_options=["--target", str(target), "--no-index", "--quiet"]))
    assert (target / "tiny_pkg" / "__init__.py").exists()
    with pytest.raises(RuntimeError, match="no-such-package"):
        client.register_plugin(PipInstall(["no-such-package-at-all"], pip_options=["--no-index"]))
    with pytest.raises(UsageError, match="packages"):
        PipInstall([])
    assert client.submit(inc, 1).result(20) == 2


def test_conda_is_called_and_its_absence_is_named(client: Client, tmp_path: Path, monkeypatch) -> None:
    """With a conda that writes down what it is asked for."""
    fake, said = tmp_path / "conda", tmp_path / "said"
    fake.write_text(f"#!/bin/sh\necho $@ >> {said}\n")
    fake.chmod(0o755)
    monkeypatch.setenv("CONDA_EXE", str(fake))
    client.register_plugin(CondaInstall(["numpy"], conda_options=["--update-deps"]))
    assert f"install --yes --prefix {sys.prefix} --update-deps numpy" in said.read_text()
    monkeypatch.setenv("CONDA_EXE", str(tmp_path / "none"))
    with pytest.raises(RuntimeError, match="could not be run"):
        client.register_plugin(CondaInstall(["pandas"]))


def shout(text: str) -> None:
    logging.getLogger("loud").info("%s", text)


def test_logs_of_workers_are_published(client: Client) -> None:
    """Under a topic, from a level on, until the plugin is removed."""
    heard: list[Any] = []
    client.subscribe_topic("loud logs", heard.append)
    client.register_plugin(ForwardLoggingPlugin("loud", logging.INFO, "loud logs"), "forwarding")
    client.submit(shout, "hello").result(20)
    until(lambda: heard)
    _, record = heard[0]
    assert (record["msg"], record["levelname"], record["name"]) == ("hello", "INFO", "loud")
    client.unregister_worker_plugin("forwarding")
    client.submit(shout, "again").result(20)
    assert [record["msg"] for _, record in client.get_events("loud logs")] == ["hello"]


def test_logs_of_workers_are_handled_here(client: Client, caplog: Any) -> None:
    """By the logger of the same name, until it is undone."""
    client.forward_logging("loud", level=logging.INFO)
    client.submit(shout, "from afar").result(20)
    until(lambda: "from afar" in caplog.text)
    client.unforward_logging("loud")
    client.submit(shout, "no more").result(20)
    client.log_event("x", 1)
    assert client.get_events("x")
    assert "no more" not in caplog.text


def log_from_task(value: Any, dask_worker: Any) -> None:
    dask_worker.log_event(["a", "b"], value)


def test_events_are_kept_and_told(cluster: LocalCluster, client: Client) -> None:
    """From clients, workers and nannies; to handlers of every client that subscribed, until they do no more."""
    heard: list[Any] = []
    client.subscribe_topic("a", lambda event: heard.append(event[1]))
    with Client(cluster) as other:
        other.log_event("a", {"x": [1, 2]})
        other.run(log_from_task, "from a worker", workers=list(client.nthreads())[:1])
        client.run(log_from_task, "from a nanny", nanny=True, workers=list(client.nthreads())[:1])
        until(lambda: len(heard) == 3)
        assert heard == [{"x": [1, 2]}, "from a worker", "from a nanny"]
        when, msg = client.get_events("b")[0]
        assert msg == "from a worker"
        assert abs(when - __import__("time").time()) < 60
        client.unsubscribe_topic("a")
        other.log_event("a", "more")
        assert client.submit(inc, 1).result(20) == 2
        assert len(client.get_events("a")) == 4
        assert len(heard) == 3
    assert {"a", "b", "all"} <= set(client.get_events())
    actions = [msg["action"] for _, msg in client.get_events("all")]
    assert actions.count("add-worker") == 2
    assert "remove-client" in actions
    with pytest.raises(TypeError, match="plain values"):
        client.log_event("a", object())
    with pytest.raises(UsageError, match="subscription"):
        client.unsubscribe_topic("a")


def test_handlers_may_be_async_and_may_fail(caplog: Any) -> None:
    """One that fails is logged, and called again."""

    async def work() -> None:
        heard = []
        done = asyncio.Event()

        async def handler(event: Any) -> None:
            heard.append(event[1])
            if event[1] == 2:
                done.set()
            raise ZeroDivisionError("in the handler")

        async with Scheduler() as scheduler, Client(scheduler.address, asynchronous=True) as client:
            await client.subscribe_topic("t", handler)
            await client.log_event("t", 1)
            await client.log_event("t", 2)
            await done.wait()
            assert heard == [1, 2]

    asyncio.run(asyncio.wait_for(work(), 30))
    assert "handler of an event failed" in caplog.text


def test_workers_are_restarted_one_by_one(client: Client) -> None:
    """Those that are named, with an answer for each; results that they held are computed again."""
    first, second = client.run(os.getpid)
    futures = client.map(inc, range(10))
    client.gather(futures)
    before = client.run(os.getpid)
    assert client.restart_workers([first]) == {first: "OK"}
    after = set(client.run(os.getpid).values())
    assert before[second] in after
    assert before[first] not in after
    assert client.gather(futures) == list(range(1, 11))
    with pytest.raises(UsageError, match="no such worker"):
        client.restart_workers(["nobody"])
    assert client.restart_workers(["nobody"], raise_for_error=False) == {"nobody": "there is no such worker"}


def test_a_worker_without_a_nanny_cannot_be_restarted() -> None:
    """And says so."""

    async def work() -> None:
        async with (
            Scheduler() as scheduler,
            Worker(scheduler.address, nthreads=1, name="bare") as worker,
            Client(scheduler.address, asynchronous=True) as client,
        ):
            with pytest.raises(UsageError, match="no nanny"):
                await client.restart_workers(["bare"])
            assert await client.submit(pid) == os.getpid()
            assert worker.status == "running"

    asyncio.run(asyncio.wait_for(work(), 30))


def test_handlers_run_outside_of_the_loop(client: Client) -> None:
    """One that blocks does not stop the client."""
    entered, go_on = threading.Event(), threading.Event()

    def block(event: Any) -> None:
        entered.set()
        go_on.wait(20)

    client.subscribe_topic("t", block)
    client.log_event("t", None)
    assert entered.wait(20)
    assert client.submit(inc, 1).result(20) == 2
    go_on.set()
