"""The ``shoal`` command."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from shoal import __version__, checks, private
from shoal.errors import ConfigurationError, ShoalError
from shoal.shell import limits, standard
from shoal.shell.logs import print_from

if TYPE_CHECKING:
    from shoal.programs.servers import Server


@click.group()
@click.version_option(__version__)
def main() -> None:
    """Run the parts of a shoal cluster."""
    standard.take_over()
    print_from(logging.INFO)


def _serve(make: Callable[[], list[Server]], pid_file: Path | None = None, with_stdin: bool = False) -> None:
    """Run servers until all have finished, or a signal comes: the first SIGTERM lets workers retire.

    ``with_stdin``: also until stdin closes; and where the first of them is, is said on stdout.
    """

    failed: list[Server] = []

    async def serve() -> None:
        from shoal.programs.servers import run_until

        ended, leaving = asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGINT, ended.set)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup
            loop.add_signal_handler(signal.SIGHUP, ended.set)  # its terminal is gone

        def on_term() -> None:
            (ended if leaving.is_set() else leaving).set()

        loop.add_signal_handler(signal.SIGTERM, on_term)
        servers = make()
        told = [loop.create_task(_tell(servers[0])), loop.create_task(_until_stdin_closes(ended))] if with_stdin else []
        try:
            await run_until(servers, ended, leaving)
            failed.extend(server for server in servers if server.exit_status)
        finally:
            for task in told:
                task.cancel()
            await asyncio.gather(*told, return_exceptions=True)

    from shoal.shell.loops import new_event_loop

    try:
        with _pid_file(pid_file), asyncio.Runner(loop_factory=new_event_loop) as runner:
            runner.run(serve())
    except (ShoalError, TimeoutError) as error:
        raise click.ClickException(str(error)) from error
    if failed:
        for server in failed:
            click.echo(f"{type(server).__name__.lower()} ended: {server.end}", err=True)
        raise SystemExit(max(server.exit_status for server in failed))


async def _tell(server: Server) -> None:
    """Say on stdout where a server is, once it is there."""
    import json

    while server.status in ("created", "starting"):
        await asyncio.sleep(0.01)
    if server.status == "running":
        addresses = getattr(server.program, "addresses", None) or [server.address]
        click.echo(json.dumps({"addresses": addresses}))


async def _until_stdin_closes(ended: asyncio.Event) -> None:
    import sys

    pipe = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(pipe), sys.stdin
    )
    try:
        await pipe.read()
        ended.set()
    finally:
        transport.close()


def _read_secret() -> Any:
    """The cluster's credentials, which are the first line of stdin."""
    from shoal import config
    from shoal.security import unpack

    line = b""
    while not line.endswith(b"\n"):
        char = os.read(0, 1)
        if not char:
            raise click.ClickException("stdin closed before the secret was there")
        line += char
    try:
        found = unpack(line.decode().strip())
        config.check_secret(found, "the first line of stdin")
    except ConfigurationError as error:
        raise click.ClickException(str(error)) from None
    except (ValueError, KeyError, TypeError):
        raise click.ClickException("the first line of stdin is no secret in hex") from None
    return found


@contextmanager
def _pid_file(path: Path | None) -> Iterator[None]:
    if path is None:
        yield
        return
    try:
        private.write(path, f"{os.getpid()}\n".encode())
    except OSError as error:
        raise click.BadParameter(f"cannot write {path}: {error.strerror}", param_hint="--pid-file") from error
    try:
        yield
    finally:
        private.remove(path)


_preload = click.option(
    "--preload", multiple=True, help="Module, file or source text to run at the start; may be given more than once."
)
_with_stdin = click.option(
    "--with-stdin", is_flag=True, help="Read the secret (a line in hex) from stdin; end when stdin closes."
)


def _dashboard(command: Any) -> Any:
    """Options of a dashboard, which there is not: they are accepted, so that command lines can stay as they are."""
    for option in ("--dashboard-address", "--dashboard-prefix"):
        command = click.option(option, hidden=True, expose_value=False)(command)
    return click.option("--dashboard/--no-dashboard", default=True, hidden=True, expose_value=False)(command)


_tls = (
    click.option("--tls-ca-file", help="Certificate of the cluster's authority: links are encrypted."),
    click.option("--tls-cert", help="Certificate of this process."),
    click.option("--tls-key", help="Its key."),
    click.option("--plain/--no-plain", default=False, help="Talk to other machines without encryption."),
)


def _with_tls(command: Any) -> Any:
    for option in _tls:
        command = option(command)
    return command


def _security(role: str, given: dict[str, Any], secret: Any) -> Any:
    """What the options of TLS say, or the secret alone."""
    from shoal.security import Security

    if given.pop("plain"):
        import dask.config

        dask.config.set({"shoal.security.plain": True})
    if not any(given.values()):
        return secret
    named = {
        "tls_ca_file": given["tls_ca_file"],
        f"tls_{role}_cert": given["tls_cert"],
        f"tls_{role}_key": given["tls_key"],
    }
    return Security(secret=secret, **{name: value for name, value in named.items() if value})


_preload_argv = click.argument("preload_argv", nargs=-1, type=click.UNPROCESSED)
_pid_file_option = click.option("--pid-file", type=click.Path(path_type=Path), help="Write the process id here.")


@main.command(context_settings={"ignore_unknown_options": True})
@click.option("--host", help="Where to listen: 127.0.0.1 by default, 0.0.0.0 for every interface.")
@click.option("--port", default=8786, show_default=True, type=click.IntRange(0, 65535), help="0 for any free port.")
@click.option("--scheduler-file", type=click.Path(path_type=Path), help="Write address and secret here (mode 0600).")
@click.option("--idle-timeout", help="Close after so long without work, as '1 hour'; never by default.")
@click.option("--interface", help="Network interface, as eth0, in place of --host.")
@click.option("--protocol", help="tcp.")
@_dashboard
@_with_tls
@_with_stdin
@_pid_file_option
@_preload
@_preload_argv
def scheduler(
    host: str | None,
    port: int,
    scheduler_file: Path | None,
    idle_timeout: str | None,
    interface: str | None,
    protocol: str | None,
    with_stdin: bool,
    pid_file: Path | None,
    preload: tuple[str, ...],
    preload_argv: tuple[str, ...],
    **tls: Any,
) -> None:
    """Run a scheduler until SIGINT, SIGTERM or SIGHUP. PRELOAD_ARGV are for the preloads."""
    from shoal import config
    from shoal.programs.preparing import expect_imports
    from shoal.programs.servers import Scheduler

    expect_imports()  # of functions that users run here
    config.hide_secret()
    options = {**_preloads(preload, preload_argv), "idle_timeout": idle_timeout}
    options |= {"interface": interface, "protocol": protocol}
    options["security"] = _security("scheduler", tls, _read_secret() if with_stdin else None)
    limits.allow()  # a link is an open file
    _serve(lambda: [Scheduler(host=host, port=port, scheduler_file=scheduler_file, **options)], pid_file, with_stdin)


@main.command(context_settings={"ignore_unknown_options": True})
@click.argument("address", required=False)
@_preload_argv
@click.option("--scheduler-file", type=click.Path(path_type=Path), help="Find the scheduler by this file, also later.")
@click.option("--nthreads", type=click.IntRange(1), help="Threads; as many as there are processors by default.")
@click.option("--nworkers", default=1, show_default=True, type=click.IntRange(1), help="Workers, each with its nanny.")
@click.option("--memory-limit", default="auto", show_default=True, help="Bytes, '4 GiB', a fraction, 'auto' or 0.")
@click.option("--name", help="The worker's name; a number is appended where there are more.")
@click.option("--resources", default="", help="Abstract resources, as 'GPU=2 MEM=10e9'.")
@click.option("--executors", default="", help="Further pools of threads, as 'io=4'.")
@click.option("--host", help="Where the worker listens; the address from which the scheduler is reached by default.")
@click.option("--interface", help="Network interface, as eth0, in place of --host.")
@click.option("--protocol", help="tcp.")
@click.option("--worker-port", help="Port, or 9000:9100; any free one by default.")
@click.option("--nanny-port", help="Where the nanny itself listens: a port, or 9000:9100.")
@click.option("--listen-address", help="Where to listen, whole: tcp://host:port.")
@click.option("--contact-address", help="What others are told, where that is another address.")
@click.option("--local-directory", type=click.Path(path_type=Path), help="Where scratch directories are made.")
@click.option("--death-timeout", help="How long to try to find the scheduler before giving up, as '60s'.")
@click.option("--worker-class", help="A subclass of shoal.Worker, as package.module.Class.")
@click.option("--nanny/--no-nanny", default=True, show_default=True, help="Supervise the worker process.")
@click.option("--reconnect/--no-reconnect", default=True, show_default=True, help="Start another when one has ended.")
@click.option("--lifetime", help="How long to live before retiring, as '2 hours'; for ever by default.")
@click.option("--lifetime-stagger", help="Up to so much earlier or later.")
@click.option("--lifetime-restart/--no-lifetime-restart", default=None, help="Start another then.")
@click.option("--validate/--no-validate", default=None, help="Check every invariant at every step.")
@click.option("--preload-nanny", multiple=True, help="As --preload, in the nanny.")
@_dashboard
@_with_tls
@_with_stdin
@_pid_file_option
@_preload
def worker(
    address: str | None,
    preload_argv: tuple[str, ...],
    scheduler_file: Path | None,
    nthreads: int | None,
    nworkers: int,
    memory_limit: str,
    name: str | None,
    resources: str,
    executors: str,
    host: str | None,
    interface: str | None,
    protocol: str | None,
    worker_port: str | None,
    nanny_port: str | None,
    listen_address: str | None,
    contact_address: str | None,
    local_directory: Path | None,
    death_timeout: str | None,
    worker_class: str | None,
    nanny: bool,
    reconnect: bool,
    lifetime: str | None,
    lifetime_stagger: str | None,
    lifetime_restart: bool | None,
    validate: bool | None,
    preload_nanny: tuple[str, ...],
    with_stdin: bool,
    pid_file: Path | None,
    preload: tuple[str, ...],
    **tls: Any,
) -> None:
    """Run a worker for the scheduler at ADDRESS. PRELOAD_ARGV are for the preloads.

    On SIGTERM it retires: what only it holds is moved to other workers before it ends (shoal.worker.retire-timeout).
    On SIGINT, SIGHUP or a second SIGTERM, it ends at once.
    """
    from shoal import config
    from shoal.programs.joining import Worker
    from shoal.programs.nannies import Nanny

    config.hide_secret()
    kind = Worker if worker_class is None else _load_class(worker_class)
    threads = nthreads or max(1, config.cpu_count() // nworkers)
    if scheduler_file is not None and address is not None:
        preload_argv = (address, *preload_argv)
        address = None
    options: dict[str, Any] = {
        "scheduler_file": scheduler_file,
        "nthreads": threads,
        "memory_limit": memory_limit,
        "resources": _parse_amounts(resources, "--resources") or None,
        "executors": {pool: int(size) for pool, size in _parse_amounts(executors, "--executors").items()},
        "host": host,
        "interface": interface,
        "protocol": protocol,
        "listen_address": listen_address,
        "contact_address": contact_address,
        "local_directory": local_directory,
        "death_timeout": death_timeout,
        "validate": validate,
        "lifetime": lifetime,
        "lifetime_stagger": lifetime_stagger,
        "lifetime_restart": lifetime_restart,
        **_preloads(preload, preload_argv),
    }
    options["security"] = _security("worker", tls, _read_secret() if with_stdin else None)
    if not nanny:
        given = {"--nworkers": nworkers > 1, "--preload-nanny": preload_nanny, "--nanny-port": nanny_port}
        for option, used in {**given, "--no-reconnect": not reconnect}.items():
            if used:
                raise click.UsageError(f"{option} needs a nanny: leave --no-nanny away")
        from shoal.programs.preparing import expect_tasks

        expect_tasks()
        _serve(lambda: [kind(address, name=name, port=worker_port, **options)], pid_file, with_stdin)
        return
    for_nanny: dict[str, Any] = {
        "worker_port": worker_port,
        "port": nanny_port,
        "worker_class": None if worker_class is None else kind,
        "reconnect": reconnect,
        "preload_nanny": list(preload_nanny) or None,
    }
    names = [name if nworkers == 1 or name is None else f"{name}-{number}" for number in range(nworkers)]
    _serve(lambda: [Nanny(address, name=each, **options, **for_nanny) for each in names], pid_file, with_stdin)


def _preloads(names: tuple[str, ...], arguments: tuple[str, ...]) -> dict[str, Any]:
    if arguments and not names:
        raise click.UsageError(f"no such option or argument: {' '.join(arguments)}")
    return {"preload": list(names) or None, "preload_argv": list(arguments) or None}


def _load_class(path: str, option: str = "--worker-class") -> Any:
    from importlib import import_module

    module, _, name = path.rpartition(".")
    if module in ("distributed", "dask.distributed"):
        module = "shoal"
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise click.BadParameter(f"{path!r} cannot be imported: {error}", param_hint=option) from error


def _parse_amounts(text: str, option: str) -> dict[str, float]:
    found = {}
    for pair in text.replace(",", " ").split():
        name, _, amount = pair.partition("=")
        try:
            found[checks.name(name, "a name")] = checks.number(float(amount), name, 0.0)
        except ValueError as error:
            why = f": {error}" if isinstance(error, ShoalError) else ""
            raise click.BadParameter(f"write NAME=NUMBER, got {pair!r}{why}", param_hint=option) from None
    return found


@main.command()
@click.argument("arguments", nargs=-1)
@click.option(
    "--spec", "text", help='JSON: {"cls": "shoal.Nanny", "opts": {"nthreads": 1}}, or several of them by name.'
)
@click.option("--spec-file", type=click.Path(path_type=Path), help="A file with that, as JSON or YAML.")
@_pid_file_option
def spec(arguments: tuple[str, ...], text: str | None, spec_file: Path | None, pid_file: Path | None) -> None:
    """Run what a specification says; ARGUMENTS (as the scheduler's address) are handed to each class."""
    import yaml

    from shoal import config

    config.hide_secret()
    if (text is None) == (spec_file is None):
        raise click.UsageError("give --spec or --spec-file")
    try:
        told = yaml.safe_load(text if text is not None else spec_file.read_text())  # type: ignore[union-attr]
    except (yaml.YAMLError, OSError) as error:
        raise click.BadParameter(f"cannot be read: {error}", param_hint="--spec") from error
    if isinstance(told, dict) and "cls" in told:
        told = {"": told}
    if not isinstance(told, dict) or not all(isinstance(one, dict) and "cls" in one for one in told.values()):
        raise click.BadParameter("must be a mapping with 'cls', or several of them by name", param_hint="--spec")

    def make() -> list[Server]:
        made = []
        for name, one in told.items():
            options = one.get("opts") or one.get("options") or {}
            named = {"name": name} if name else {}
            made.append(_load_class(one["cls"], "cls")(*arguments, **{**named, **options}))
        return made

    _serve(make, pid_file)


@main.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("-m", "module", is_flag=True, help="SCRIPT is the name of a module.")
@click.argument("script")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def run(module: bool, script: str, arguments: tuple[str, ...]) -> None:
    """Run a Python SCRIPT that was written for dask.distributed, with shoal in its place."""
    import runpy
    import sys

    from shoal.compat import as_distributed

    as_distributed()
    logging.getLogger().handlers.clear()
    sys.argv = [script, *arguments]
    if module:
        sys.path.insert(0, "")
        runpy.run_module(script, run_name="__main__", alter_sys=True)
        return
    if not Path(script).exists():
        raise click.BadParameter(f"there is no file {script!r}", param_hint="SCRIPT")
    sys.path.insert(0, str(Path(script).resolve().parent))
    runpy.run_path(script, run_name="__main__")


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
