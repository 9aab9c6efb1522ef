"""A cluster on this machine, in a process of its own."""

from __future__ import annotations

import json
import logging
import select
import subprocess
import sys
from time import monotonic
from typing import Any

from shoal import config
from shoal.errors import ConfigurationError, StartError


class LocalCluster:
    """A scheduler and supervised worker processes on this machine.

    Neither lives in this interpreter: one head process runs the scheduler and the nannies, so that nothing that is
    done here (a long call that holds the GIL) is in the way of the tasks. It ends with this process, however that
    ends.

    Parameters
    ----------
    n_workers
        Worker processes; as many as there are processors by default.
    threads_per_worker
        Tasks that each runs at the same time.
    memory_limit
        Of each worker: bytes, ``"4 GiB"``, a fraction of the machine, ``"auto"``, or 0 for none.
    host, scheduler_port
        Where the scheduler listens; loopback by default.
    env
        Environment of the workers.
    """

    def __init__(
        self,
        n_workers: int | None = None,
        threads_per_worker: int | None = None,
        memory_limit: Any = "auto",
        host: str = "127.0.0.1",
        scheduler_port: int = 0,
        silence_logs: int = logging.WARNING,
        resources: dict[str, float] | None = None,
        env: dict[str, str] | None = None,
        name: str | None = None,
        timeout: float = 60.0,
    ) -> None:
        cpus = config.cpu_count()
        count = cpus if n_workers is None else n_workers
        threads = max(1, cpus // max(count, 1)) if threads_per_worker is None else threads_per_worker
        if count < 0 or threads < 1:
            raise ConfigurationError(f"n_workers={n_workers!r}, threads_per_worker={threads_per_worker!r}: too few")
        self.name = name or "LocalCluster"
        self.n_workers, self.threads_per_worker = count, threads
        self._secret = config.default_secret()
        options = {
            "config": config.export(),
            "sys_path": config.import_path(),
            "secret": self._secret.hex(),
            "silence_logs": silence_logs,
            "runtime_directory": str(config.runtime_directory()),
            "host": host,
            "port": scheduler_port,
            "names": [str(number) for number in range(count)],
            "nthreads": threads,
            "memory_limit": config.memory_limit(memory_limit, threads),
            "resources": resources,
            "env": env or {},
        }
        self._head: subprocess.Popen[bytes] | None = subprocess.Popen(
            [sys.executable, "-m", "shoal.programs.head"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=config.effective_environment(env or {}),
        )
        assert self._head.stdin is not None
        self._head.stdin.write(json.dumps(options).encode() + b"\n")
        self._head.stdin.flush()
        try:
            self._addresses: list[str] = self._read_answer(timeout)
        except BaseException:
            self.close()
            raise

    def _read_answer(self, timeout: float) -> list[str]:
        assert self._head is not None
        assert self._head.stdout is not None
        due = monotonic() + timeout
        ready, _, _ = select.select([self._head.stdout], [], [], max(0.0, due - monotonic()))
        line = self._head.stdout.readline() if ready else b""
        if not line:
            what = "ended" if ready else f"did not answer within {timeout:g} s"
            raise StartError(f"the head process of the cluster {what}; see its log above")
        answer = json.loads(line)
        if "error" in answer:
            raise StartError(f"the cluster did not start: {answer['error']}")
        addresses: list[str] = answer["addresses"]
        return addresses

    @property
    def scheduler_address(self) -> str:
        """The address to connect to."""
        return self._addresses[0]

    @property
    def scheduler_pid(self) -> int | None:
        """Process id of the head process, in which the scheduler runs; None once closed."""
        return self._head.pid if self._head is not None else None

    def close(self, timeout: float = 15.0) -> None:
        """End the workers and the scheduler; returns once all their processes are gone."""
        head, self._head = self._head, None
        if head is None:
            return
        assert head.stdin is not None
        assert head.stdout is not None
        head.stdin.close()
        try:
            head.wait(timeout)
        except subprocess.TimeoutExpired:
            head.kill()
            head.wait()
        head.stdout.close()

    def __enter__(self) -> LocalCluster:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_head", None) is not None:
            self.close()

    def __repr__(self) -> str:
        where = "closed" if self._head is None else self.scheduler_address
        return f"<LocalCluster {self.name!r} {where}, {self.n_workers} workers of {self.threads_per_worker} threads>"
