"""Programs written for dask.distributed, run as they are by ``python -m shoal run``."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

#: What each program begins with: the setting that its users have.
_BEGIN = """
from dask.distributed import Client, LocalCluster

if __name__ == "__main__":
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster, Client(cluster) as client:
"""


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., str]:
    """Runs the body of a program with a client, and returns what it prints."""

    def run(body: str, timeout: float = 110, *, head: str = "") -> str:
        script = tmp_path / "program.py"
        lines = "".join(f"        {line}\n" for line in body.strip("\n").splitlines())
        script.write_text(head + _BEGIN + lines)
        environment = {**os.environ, "XDG_CONFIG_HOME": str(tmp_path), "TMPDIR": str(tmp_path)}
        done = subprocess.run(
            [sys.executable, "-m", "shoal", "run", str(script)],
            capture_output=True,
            text=True,
            timeout=timeout,
            env=environment,
            cwd=tmp_path,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        return done.stdout

    return run
