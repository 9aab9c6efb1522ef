"""The commands, as processes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

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
