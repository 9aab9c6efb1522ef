"""The ``shoal`` command."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from shoal import __version__
from shoal.errors import ShoalError

if TYPE_CHECKING:
    from shoal.programs.servers import Server


@click.group()
@click.version_option(__version__)
def main() -> None:
    """Run the parts of a shoal cluster."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s - %(name)s - %(levelname)s - %(message)s")


def _serve(make: Callable[[], Server]) -> None:
    """Run a server until it has finished, or SIGINT or SIGTERM comes."""

    async def serve() -> None:
        from shoal.programs.servers import run_until

        ended = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, ended.set)
        await run_until(make(), ended)

    from shoal.shell.loops import new_event_loop

    try:
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            runner.run(serve())
    except ShoalError as error:
        raise click.ClickException(str(error)) from error


@main.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen; 0.0.0.0 for every interface.")
@click.option("--port", default=8786, show_default=True, type=click.IntRange(0, 65535), help="0 for any free port.")
@click.option("--scheduler-file", type=click.Path(path_type=Path), help="Write address and secret here (mode 0600).")
def scheduler(host: str, port: int, scheduler_file: Path | None) -> None:
    """Run a scheduler until SIGINT or SIGTERM."""
    from shoal.programs.servers import Scheduler

    _serve(lambda: Scheduler(host=host, port=port, scheduler_file=scheduler_file))


@main.command()
@click.argument("address", required=False)
@click.option("--scheduler-file", type=click.Path(path_type=Path), help="Find the scheduler by this file.")
@click.option("--nthreads", type=click.IntRange(1), help="Threads; as many as there are processors by default.")
@click.option("--memory-limit", default="auto", show_default=True, help="Bytes, '4 GiB', a fraction, 'auto' or 0.")
@click.option("--name", help="The worker's name.")
@click.option("--resources", default="", help="Abstract resources, as 'GPU=2 MEM=10e9'.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Where the worker listens.")
@click.option("--worker-port", default=0, show_default=True, type=click.IntRange(0, 65535), help="0 for any free port.")
@click.option("--nanny/--no-nanny", default=True, show_default=True, help="Supervise the worker process.")
def worker(
    address: str | None,
    scheduler_file: Path | None,
    nthreads: int | None,
    memory_limit: str,
    name: str | None,
    resources: str,
    host: str,
    worker_port: int,
    nanny: bool,
) -> None:
    """Run a worker for the scheduler at ADDRESS until SIGINT or SIGTERM."""
    from shoal.programs.servers import Nanny, Worker

    kind = Nanny if nanny else Worker
    amounts = _parse_resources(resources)
    _serve(
        lambda: kind(
            address,
            scheduler_file=scheduler_file,
            nthreads=nthreads,
            name=name,
            memory_limit=memory_limit,
            resources=amounts,
            host=host,
            port=worker_port,
        )
    )


def _parse_resources(text: str) -> dict[str, float]:
    found = {}
    for pair in text.replace(",", " ").split():
        name, _, amount = pair.partition("=")
        try:
            found[name] = float(amount)
        except ValueError:
            raise click.BadParameter(f"write NAME=NUMBER, got {pair!r}", param_hint="--resources") from None
    return found
