"""A secret that is given by the environment or the configuration is not seen by code of users."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import dask.config
import pytest

from shoal import Client, LocalCluster, SubprocessCluster, hiding
from shoal.security import pack

SECRET = "this-secret-should-be-seen-by-nobody"


def _seen() -> dict[str, str]:
    """Where code may come upon it: in its environment, a child's, that of its process, and dask's configuration."""
    import dask.config as here

    found = {
        "environ": repr(dict(os.environ)),
        "child": subprocess.run(["env"], capture_output=True, text=True, check=True).stdout,
        "started with": Path("/proc/self/environ").read_text(),
        "dask": repr(here.config),
        "inherited": repr(here.deserialize(os.environ.get("DASK_INTERNAL_INHERIT_CONFIG", "e30="))),
        "command line": Path("/proc/self/cmdline").read_text(),
    }
    return {name: text for name, text in found.items() if "should-be-seen" in text or SECRET.encode().hex() in text}


def _on_scheduler(dask_scheduler: Any) -> dict[str, str]:
    return _seen()


def _check(client: Client) -> None:
    assert list(client.run(_seen).values()) == [{}]
    assert client.submit(_seen, pure=False).result() == {}
    assert client.submit(_seen, pure=False, killable=True).result() == {}
    assert client.run_on_scheduler(_on_scheduler) == {}
    assert SECRET not in repr(client.scheduler_info())


SECTIONS = {
    "a section in dask's environment": ("DASK_SHOAL__SECURITY", {"secret": SECRET}),
    "a larger section": ("DASK_Shoal", {"security": {"secret": SECRET}, "scheduler": {"backlog": 0.02}}),
}


@pytest.mark.parametrize("how", ["environment", "dask's environment", "configuration", *SECTIONS])
def test_of_a_local_cluster(monkeypatch, nothing_is_left, how: str) -> None:
    """Nor by a process for one task, nor on the scheduler; a client of a task gets to its cluster all the same."""
    if how == "environment":
        monkeypatch.setenv("SHOAL_SECRET", SECRET)
    if how == "dask's environment":
        monkeypatch.setenv("DASK_SHOAL__SECURITY__SECRET", SECRET)
    if how in SECTIONS:
        monkeypatch.setenv(SECTIONS[how][0], repr(SECTIONS[how][1]))
    with (
        dask.config.set({} if how == "environment" else {"shoal.security.secret": SECRET}),
        LocalCluster(n_workers=1, threads_per_worker=1) as cluster,
        Client(cluster) as client,
    ):
        _check(client)
        assert client.submit(_ask, cluster.scheduler_address).result() == 3
        assert SECRET not in repr((cluster, cluster.security, client, cluster.security.secret))


def test_the_rest_of_a_section_stays() -> None:
    """Of variables that hold more than the secret, and of what dask hands on; what is no mapping is left alone."""
    tree = {"shoal": {"security": {"secret": SECRET, "plain": True}, "nanny": {}}, "other": [1]}
    environment = {
        "DASK_SHOAL__SECURITY": repr(tree["shoal"]["security"]),
        "DASK_SHOAL": "{unreadable",
        "DASK_SHOAL__SECURITY__PLAIN": "True",
        "DASK_INTERNAL_INHERIT_CONFIG": dask.config.serialize(tree),
    }
    hiding.strip_environment(environment)
    assert environment["DASK_SHOAL__SECURITY"] == "{'plain': True}"
    assert environment["DASK_SHOAL"] == "{unreadable"
    assert environment["DASK_SHOAL__SECURITY__PLAIN"] == "True"
    kept = dask.config.deserialize(environment["DASK_INTERNAL_INHERIT_CONFIG"])
    assert kept == {"shoal": {"security": {"plain": True}, "nanny": {}}, "other": [1]}


def _ask(address: str) -> int:
    with Client(address, set_as_default=False) as client:
        return len(client.scheduler_info()["workers"]) + 2


def test_of_commands(monkeypatch, tmp_path: Path, nothing_is_left) -> None:
    """``shoal scheduler`` and ``shoal worker``, which take it from their own environment."""
    monkeypatch.setenv("SHOAL_SECRET", SECRET)
    file = tmp_path / "s.json"
    shoal = [sys.executable, "-m", "shoal"]
    started = [
        subprocess.Popen([*shoal, "scheduler", "--port", "0", "--scheduler-file", str(file)]),
        subprocess.Popen([*shoal, "worker", "--scheduler-file", str(file), "--nthreads", "1"]),
    ]
    try:
        while not file.exists():
            time.sleep(0.02)
        with Client(scheduler_file=str(file)) as client:
            client.wait_for_workers(1)
            assert list(client.run(_seen).values()) == [{}]
            assert client.submit(_seen).result() == {}
            assert set(client.run(lambda: "SHOAL_SECRET" in os.environ, nanny=True).values()) == {False}
            assert client.run_on_scheduler(lambda: "SHOAL_SECRET" in os.environ) is False
    finally:
        for process in reversed(started):
            process.terminate()
            process.wait(30)


def test_of_processes_that_are_started_by_commands(monkeypatch, nothing_is_left) -> None:
    """They get it by stdin."""
    monkeypatch.setenv("SHOAL_SECRET", SECRET)
    with SubprocessCluster(n_workers=1, threads_per_worker=1) as cluster, Client(cluster) as client:
        _check(client)
        assert pack(cluster.security.secret) not in repr(client.run(_seen))
