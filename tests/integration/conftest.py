"""What every test with real processes shares: a home of its own, clusters, and the check that nothing is left."""

from __future__ import annotations

import gc
import os
import tempfile
import threading
import time
from collections.abc import Iterator

import psutil
import pytest

from shoal import Client, LocalCluster
from shoal.client.loop import get_loop_thread
from shoal.shell.scratch import remove_orphans


def _snapshot() -> tuple[set[int], set[str], set[str]]:
    """Child processes, threads, and what the open descriptors are (sockets, pipes, files)."""
    me = psutil.Process()
    descriptors = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
            if not target.startswith("/dev/"):
                descriptors.add(f"{name} {target}")
        except OSError:
            pass  # the descriptor of the listing itself
    # A loop keeps its own pool (uvloop_0, …) while it lives; that of the clients lives as long as this process.
    names = {f"{thread.name} {thread.ident}" for thread in threading.enumerate()}
    threads = {name for name in names if not name.startswith(("uvloop_", "asyncio_"))}
    return {child.pid for child in me.children(recursive=True)}, threads, descriptors


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path_factory, monkeypatch) -> Iterator[None]:
    """No process, thread, descriptor or file outlives a test; the user's own secret is neither read nor made."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("home")))
    scratch = tmp_path_factory.mktemp("scratch")
    monkeypatch.setenv("TMPDIR", str(scratch))
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    get_loop_thread()
    before = _snapshot()
    yield
    deadline = time.monotonic() + 10
    while True:
        gc.collect()
        for space in scratch.glob("shoal-scratch-space-*"):
            remove_orphans(space)  # what processes left that were killed; whoever starts next would do this
        left = [sorted(now - then) for now, then in zip(_snapshot(), before, strict=True)]
        files = [str(path) for path in scratch.rglob("*") if not path.is_dir()]
        directories = [str(path) for path in scratch.glob("shoal-*/*")]
        if not any((*left, files, directories)):
            return
        assert time.monotonic() < deadline, f"left behind: {left} {files} {directories}"
        time.sleep(0.05)


@pytest.fixture
def cluster(nothing_is_left: None) -> Iterator[LocalCluster]:
    with LocalCluster(n_workers=2, threads_per_worker=1) as cluster:
        yield cluster


@pytest.fixture
def client(cluster: LocalCluster) -> Iterator[Client]:
    with Client(cluster) as client:
        yield client
