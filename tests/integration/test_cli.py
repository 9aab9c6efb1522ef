"""The commands, as processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from shoal import Client
from tests.integration.helpers import until


def double(x: int) -> int:
    return 2 * x


@pytest.mark.parametrize("nanny", ["--nanny", "--no-nanny"])
def test_scheduler_and_worker_find_each_other_and_end_cleanly(tmp_path: Path, nanny: str) -> None:
    """Joined by a scheduler file, they run a task, and SIGTERM ends them with status 0."""
    file = tmp_path / "scheduler.json"
    command = [sys.executable, "-c", "from shoal.cli import main; main()"]
    scheduler = subprocess.Popen([*command, "scheduler", "--port", "0", "--scheduler-file", str(file)])
    until(file.exists)
    assert file.stat().st_mode & 0o777 == 0o600
    worker = subprocess.Popen([*command, "worker", "--scheduler-file", str(file), "--nthreads", "1", nanny])
    try:
        with Client(json.loads(file.read_text())["address"]) as client:
            assert client.submit(double, 21).result(30) == 42
    finally:
        for process in (worker, scheduler):
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0


COMMAND = [sys.executable, "-m", "shoal"]


def test_a_terminal_that_closes_ends_all_and_leaves_nothing(tmp_path: Path) -> None:
    """SIGHUP removes the scheduler file and scratch directories as SIGINT does; under nohup it is ignored."""
    file, nohup = tmp_path / "scheduler.json", ["env", "nohup"]
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    quiet: dict[str, Any] = {"env": env, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    scheduler = subprocess.Popen([*nohup, *COMMAND, "scheduler", "--port", "0", "--scheduler-file", str(file)], **quiet)
    until(file.exists)
    worker = subprocess.Popen([*COMMAND, "worker", "--scheduler-file", str(file), "--nthreads", "1"], **quiet)
    try:
        with Client(json.loads(file.read_text())["address"]) as client:
            client.wait_for_workers(1, timeout=30)
            scheduler.send_signal(signal.SIGHUP)
            assert client.submit(double, 21).result(30) == 42
        worker.send_signal(signal.SIGHUP)
        assert worker.wait(20) == 0
    finally:
        for process in (worker, scheduler):
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
    assert not [path for path in tmp_path.rglob("*") if not path.is_dir()]


def facts(dask_worker: Any) -> dict[str, Any]:
    worker = dask_worker
    return {
        "name": worker.name, "nthreads": worker.nthreads, "memory": worker.memory_limit, "class": type(worker).__name__,
        "resources": worker.resources, "executors": worker.executors, "validate": worker.core.validate,
        "directory": worker.local_directory, "nanny": worker.has_nanny, "said": getattr(worker, "said", None),
    }  # fmt: skip


def test_every_option_of_a_worker_arrives(tmp_path: Path) -> None:
    """By way of the nanny, and to a file of ours that is a preload."""
    file, pid_file = tmp_path / "scheduler.json", tmp_path / "pid"
    preload = tmp_path / "preload_cli.py"
    preload.write_text(
        "import click\n@click.command()\n@click.option('--word')\n"
        "def dask_setup(worker, word):\n    worker.said = word\n"
    )
    scheduler = subprocess.Popen([*COMMAND, "scheduler", "--port", "0", "--scheduler-file", str(file)])
    options = (
        f"--scheduler-file {file} --nthreads 2 --nworkers 2 --memory-limit 300MB --name w --resources GPU=2 "
        f"--executors io=3 --worker-port 20000:40000 --local-directory {tmp_path} --death-timeout 30s --validate "
        f"--worker-class tests.integration.test_nannies.LoudWorker --pid-file {pid_file} --interface lo --protocol tcp "
        f"--preload {preload} --nanny-port 0 --word hello"
    )
    worker = subprocess.Popen([*COMMAND, "worker", *options.split()])
    try:
        with Client(scheduler_file=_there(file)) as client:
            client.wait_for_workers(2, timeout=30)
            found = client.run(facts)
            assert sorted(one["name"] for one in found.values()) == ["w-0", "w-1"]
            for address, one in found.items():
                assert 20000 <= int(address.rpartition(":")[2]) <= 40000
                assert (one["nthreads"], one["memory"], one["class"]) == (2, 300_000_000, "LoudWorker")
                assert (one["resources"], one["executors"], one["validate"]) == ({"GPU": 2.0}, {"io": 3}, True)
                assert one["directory"].startswith(str(tmp_path))
                assert (one["nanny"], one["said"]) == (True, "hello")
            assert int(pid_file.read_text()) == worker.pid
    finally:
        for process in (worker, scheduler):
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
    assert not pid_file.exists()
    assert not list(tmp_path.glob("shoal-scratch-space-*/*"))


def _there(file: Path) -> Path:
    until(file.exists)
    return file


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ("tcp://127.0.0.1:1 --no-nanny --nworkers 2", "--nworkers needs a nanny"),
        ("tcp://127.0.0.1:1 --no-nanny --no-reconnect", "--no-reconnect needs a nanny"),
        ("tcp://127.0.0.1:1 --nthread 2", "no such option"),
        ("tcp://127.0.0.1:1 --worker-class no.such.Class", "--worker-class"),
        ("tcp://127.0.0.1:1 --worker-port nine", "port must be"),
        ("tcp://127.0.0.1:1 --death-timeout 500ms", "nobody could be reached"),
        ("--scheduler-file none.json --death-timeout 100ms", "did not appear"),
        ("tcp://127.0.0.1:1 --memory-limit 5parsecs", "memory_limit"),
        ("tcp://127.0.0.1:1 --resources GPU", "--resources"),
    ],
)
def test_options_that_make_no_sense_are_named(options: str, match: str) -> None:
    """With a status that is not 0, and without a traceback."""
    done = subprocess.run([*COMMAND, "worker", *options.split()], capture_output=True, text=True, check=False)
    assert done.returncode in (1, 2)
    assert match in done.stderr
    assert "Traceback" not in done.stderr


def test_one_that_does_not_reconnect_ends_with_its_worker(tmp_path: Path) -> None:
    """The command ends by itself."""
    file = tmp_path / "scheduler.json"
    scheduler = subprocess.Popen([*COMMAND, "scheduler", "--port", "0", "--scheduler-file", str(file)])
    worker = subprocess.Popen([*COMMAND, "worker", "--scheduler-file", str(file), "--no-reconnect", "--nthreads", "1"])
    try:
        with Client(scheduler_file=_there(file)) as client:
            client.wait_for_workers(1, timeout=30)
            (number,) = client.run(os.getpid).values()
            os.kill(number, signal.SIGKILL)
            worker.wait(20)
    finally:
        scheduler.send_signal(signal.SIGTERM)
        assert scheduler.wait(20) == 0
