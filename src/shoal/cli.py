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
from shoal.shell.logs import print_from

if TYPE_CHECKING:
    from shoal.programs.servers import Server


@click.group()
@click.version_option(__version__)
def main() -> None:
    """Run the parts of a shoal cluster."""
    print_from(logging.INFO)


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
@click.option("--executors", default="", help="Further pools of threads, as 'io=4'.")
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
    executors: str,
    host: str,
    worker_port: int,
    nanny: bool,
) -> None:
    """Run a worker for the scheduler at ADDRESS until SIGINT or SIGTERM."""
    from shoal.programs.joining import Worker
    from shoal.programs.nannies import Nanny

    kind = Nanny if nanny else Worker
    amounts = _parse_amounts(resources, "--resources")
    pools = {pool: int(size) for pool, size in _parse_amounts(executors, "--executors").items()}
    _serve(
        lambda: kind(
            address,
            scheduler_file=scheduler_file,
            nthreads=nthreads,
            name=name,
            memory_limit=memory_limit,
            resources=amounts,
            executors=pools,
            host=host,
            port=worker_port,
        )
    )


def _parse_amounts(text: str, option: str) -> dict[str, float]:
    found = {}
    for pair in text.replace(",", " ").split():
        name, _, amount = pair.partition("=")
        try:
            found[name] = float(amount)
        except ValueError:
            raise click.BadParameter(f"write NAME=NUMBER, got {pair!r}", param_hint=option) from None
    return found


@main.command()
@click.argument("key")
@click.option("--scheduler", "address", help="The scheduler's address.")
@click.option("--scheduler-file", type=click.Path(path_type=Path), help="Find the scheduler by this file.")
@click.option("--dump", help="Ask a file that Client.dump_cluster_state wrote, in place of a cluster.")
def why(key: str, address: str | None, scheduler_file: Path | None, dump: str | None) -> None:
    """Say why KEY is not done yet: what it waits for, where, since when."""
    from shoal.client.client import Client
    from shoal.client.dump import DumpArtefact

    if sum(given is not None for given in (address, scheduler_file, dump)) != 1:
        raise click.UsageError("give one of --scheduler, --scheduler-file and --dump")
    try:
        if dump is not None:
            click.echo(DumpArtefact.from_url(dump).why(key))
            return
        with Client(address, scheduler_file=scheduler_file, set_as_default=False) as client:
            click.echo(client.why(key))
    except (ShoalError, FileNotFoundError) as error:
        raise click.ClickException(str(error)) from error


@main.command()
@click.option("--seed", type=int, help="Run one seed, and tell its story if it breaks.")
@click.option("--seeds", default="0:300", show_default=True, help="A range of seeds, as FIRST:LAST.")
@click.option("--jobs", type=click.IntRange(1), help="Processes; as many as there are processors by default.")
@click.option("--workers", type=click.IntRange(0), help="Workers at the start, in place of what the seed draws.")
@click.option("--tasks", type=click.IntRange(1), help="Tasks of one submission, in place of what the seed draws.")
@click.option("--faults", type=click.IntRange(0), help="Misfortunes, in place of what the seed draws.")
def sim(
    seed: int | None, seeds: str, jobs: int | None, workers: int | None, tasks: int | None, faults: int | None
) -> None:
    """Run clusters of the real cores in virtual time; status 1 if one breaks."""
    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table

    from shoal import config
    from shoal.sim import campaign
    from shoal.sim.options import Options

    given = {"workers": workers, "tasks": tasks, "faults": faults}
    if seed is not None:
        options = Options.draw(seed, **given)
        told = campaign.story(options)
        click.echo(told)
        raise SystemExit(0 if "runs clean" in told else 1)
    first, _, last = seeds.partition(":")
    if not (first.isdigit() and last.isdigit()) or int(first) >= int(last):
        raise click.BadParameter(f"write FIRST:LAST, got {seeds!r}", param_hint="--seeds")
    total = campaign.Report()
    console = Console()
    wanted = range(int(first), int(last))
    with Progress(console=console) as progress:
        bar = progress.add_task("simulating", total=len(wanted))
        for report in campaign.campaign(wanted, given, jobs or config.cpu_count()):
            total.add(report)
            progress.advance(bar, report.runs)
    table = Table("what happened", "how often", title=f"{total.runs:,} runs, {total.steps:,} events")
    for what, count in sorted(total.counters.items()):
        table.add_row(what, f"{count:,}")
    console.print(table)
    for broken, what in sorted(total.broken.items())[:10]:
        console.print(f"seed {broken}: {what.strip().splitlines()[-1][:200]}", style="red", markup=False)
    if total.broken:
        worst = min(total.broken)
        click.echo(f"\n{len(total.broken)} of {total.runs} seeds broke; the story of the first:\n")
        click.echo(campaign.story(Options.draw(worst, **given)))
        raise SystemExit(1)
    console.print(f"all {total.runs:,} runs were right")
