"""The ``shoal`` command."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import tempfile
from pathlib import Path
from typing import Any
from uuid import uuid4

import click

from shoal import __version__, config
from shoal.errors import ShoalError


@click.group()
@click.version_option(__version__)
def main() -> None:
    """Run the parts of a shoal cluster."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s - %(name)s - %(levelname)s - %(message)s")


def _run(program: Any) -> None:
    try:
        asyncio.run(program)
    except ShoalError as error:
        raise click.ClickException(str(error)) from error


def _until_signalled(finished: asyncio.Event) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, finished.set)


@main.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen.")
@click.option("--port", default=8786, show_default=True, type=int, help="0 for any free port.")
@click.option("--scheduler-file", type=click.Path(path_type=Path), help="Write the address here (mode 0600).")
def scheduler(host: str, port: int, scheduler_file: Path | None) -> None:
    """Run a scheduler until SIGINT or SIGTERM."""

    async def serve() -> None:
        from shoal.programs.scheduler import SchedulerProgram

        program = SchedulerProgram(config.default_secret())
        _until_signalled(program.finished)
        await program.start([f"tcp://{host}:{port}"])
        if scheduler_file is not None:
            text = json.dumps({"type": "Scheduler", "id": program.id, "address": program.addresses[0]})
            config.write_private(scheduler_file, text)
        await program.finished.wait()
        await program.close(program.reason or "the scheduler was told to end")

    _run(serve())


@main.command()
@click.argument("address", required=False)
@click.option("--scheduler-file", type=click.Path(path_type=Path), help="Read the scheduler's address from here.")
@click.option("--nthreads", type=int, help="Threads; as many as there are processors by default.")
@click.option("--memory-limit", default="auto", show_default=True, help="Bytes, '4 GiB', a fraction, 'auto' or 0.")
@click.option("--name", help="The worker's name.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Where the worker listens.")
@click.option("--worker-port", default=0, show_default=True, type=int, help="0 for any free port.")
@click.option("--nanny/--no-nanny", default=True, show_default=True, help="Supervise the worker process.")
def worker(
    address: str | None,
    scheduler_file: Path | None,
    nthreads: int | None,
    memory_limit: str,
    name: str | None,
    host: str,
    worker_port: int,
    nanny: bool,
) -> None:
    """Run a worker for the scheduler at ADDRESS until SIGINT or SIGTERM."""
    if (address is None) == (scheduler_file is None):
        raise click.UsageError("give either the scheduler's ADDRESS or --scheduler-file")
    if scheduler_file is not None:
        try:
            address = json.loads(scheduler_file.read_text())["address"]
        except (OSError, ValueError, KeyError) as error:
            raise click.UsageError(f"--scheduler-file {scheduler_file} cannot be read: {error!r}") from error
    threads = config.cpu_count() if nthreads is None else nthreads
    if threads < 1:
        raise click.UsageError(f"--nthreads must be at least 1, got {threads}")

    async def serve() -> None:
        limit = config.memory_limit(memory_limit, threads, "--memory-limit")
        title = name or f"{os.uname().nodename}-{uuid4().hex[:8]}"
        with tempfile.TemporaryDirectory(prefix="worker-", dir=config.runtime_directory()) as sockets:
            listen = [f"tcp://{host}:{worker_port}", f"unix://{sockets}/{{id}}"]
            await _serve_worker(str(address), title, threads, limit, listen, nanny)

    _run(serve())


async def _serve_worker(address: str, name: str, nthreads: int, limit: int, listen: list[str], nanny: bool) -> None:
    from shoal.programs.nanny import NannyProgram
    from shoal.programs.worker import WorkerProgram

    secret = config.default_secret()
    program: NannyProgram | WorkerProgram
    if nanny:
        program = NannyProgram([address], secret, name, listen, limit, {"nthreads": nthreads})
        ended = asyncio.Event()
        _until_signalled(ended)
        await program.start()
        waits = {asyncio.ensure_future(ended.wait()), asyncio.ensure_future(program.finished.wait())}
        _, pending = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in pending:
            wait.cancel()
    else:
        program = WorkerProgram([address], secret, name=name, nthreads=nthreads, memory_limit=limit)
        _until_signalled(program.finished)
        await program.start([one.format(id=uuid4().hex[:12]) for one in listen])
        await program.finished.wait()
    await program.close(program.reason or "told to end by a signal")
