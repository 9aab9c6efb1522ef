"""shoal runs Python task graphs on a fleet of supervised worker processes."""

from __future__ import annotations

import concurrent.futures.thread
import sys
from typing import TYPE_CHECKING, Any

# Neither module of pools can be imported any more once the main thread has ended, where other threads go on and start
# clusters. dask imports the second one, which takes 20 ms; shoal's own processes (``shell/interpreter.py``) do without.
if "shoal-process" not in sys._xoptions:
    import concurrent.futures.process  # noqa: F401

if TYPE_CHECKING:
    from builtins import TimeoutError as TimeoutError
    from concurrent.futures import CancelledError as CancelledError

    from shoal.client.actor import Actor as Actor
    from shoal.client.actor import ActorFuture as ActorFuture
    from shoal.client.actor import BaseActorFuture as BaseActorFuture
    from shoal.client.client import Client as Client
    from shoal.client.copies import AMMClientProxy as AMMClientProxy
    from shoal.client.current import default_client as default_client
    from shoal.client.current import get_client as get_client
    from shoal.client.current import get_worker as get_worker
    from shoal.client.dump import DumpArtefact as DumpArtefact
    from shoal.client.executor import ClientExecutor as ClientExecutor
    from shoal.client.future import Future as Future
    from shoal.client.inside import local_client as local_client
    from shoal.client.inside import print as print
    from shoal.client.inside import rejoin as rejoin
    from shoal.client.inside import secede as secede
    from shoal.client.inside import warn as warn
    from shoal.client.inside import worker_client as worker_client
    from shoal.client.keeping import fire_and_forget as fire_and_forget
    from shoal.client.keeping import futures_of as futures_of
    from shoal.client.loop import sync as sync
    from shoal.client.questions import get_task_stream as get_task_stream
    from shoal.client.rpc import rpc as rpc
    from shoal.client.waiting import as_completed as as_completed
    from shoal.client.waiting import wait as wait
    from shoal.compat.importing import as_distributed as as_distributed
    from shoal.coordination.boxes import Event as Event
    from shoal.coordination.boxes import Queue as Queue
    from shoal.coordination.boxes import Variable as Variable
    from shoal.coordination.locks import Lock as Lock
    from shoal.coordination.locks import MultiLock as MultiLock
    from shoal.coordination.locks import Semaphore as Semaphore
    from shoal.core.scheduler.amm import ActiveMemoryManagerPolicy as ActiveMemoryManagerPolicy
    from shoal.core.scheduler.amm import ReduceReplicas as ReduceReplicas
    from shoal.deploy.adaptive import Adaptive as Adaptive
    from shoal.deploy.cluster import Cluster as Cluster
    from shoal.deploy.local import LocalCluster as LocalCluster
    from shoal.deploy.spec import ProcessInterface as ProcessInterface
    from shoal.deploy.spec import SpecCluster as SpecCluster
    from shoal.deploy.ssh import SSHCluster as SSHCluster
    from shoal.deploy.subprocess import SubprocessCluster as SubprocessCluster
    from shoal.errors import KilledWorker as KilledWorker
    from shoal.errors import Reschedule as Reschedule
    from shoal.observe.metadata import get_task_metadata as get_task_metadata
    from shoal.observe.progress import progress as progress
    from shoal.observe.report import performance_report as performance_report
    from shoal.observe.sampler import MemorySampler as MemorySampler
    from shoal.observe.spans import span as span
    from shoal.plugins.base import NannyPlugin as NannyPlugin
    from shoal.plugins.base import SchedulerPlugin as SchedulerPlugin
    from shoal.plugins.base import WorkerPlugin as WorkerPlugin
    from shoal.plugins.builtin import CondaInstall as CondaInstall
    from shoal.plugins.builtin import Environ as Environ
    from shoal.plugins.builtin import ForwardLoggingPlugin as ForwardLoggingPlugin
    from shoal.plugins.builtin import InstallPlugin as InstallPlugin
    from shoal.plugins.builtin import PipInstall as PipInstall
    from shoal.plugins.builtin import UploadDirectory as UploadDirectory
    from shoal.plugins.builtin import UploadFile as UploadFile
    from shoal.programs.joining import Worker as Worker
    from shoal.programs.nannies import Nanny as Nanny
    from shoal.programs.servers import Scheduler as Scheduler
    from shoal.programs.status import Status as Status
    from shoal.security import Security as Security

_EXPORTS = {
    "TimeoutError": "builtins",
    "CancelledError": "concurrent.futures",
    "Actor": "shoal.client.actor",
    "ActorFuture": "shoal.client.actor",
    "BaseActorFuture": "shoal.client.actor",
    "Client": "shoal.client.client",
    "AMMClientProxy": "shoal.client.copies",
    "default_client": "shoal.client.current",
    "get_client": "shoal.client.current",
    "get_worker": "shoal.client.current",
    "DumpArtefact": "shoal.client.dump",
    "ClientExecutor": "shoal.client.executor",
    "Future": "shoal.client.future",
    "local_client": "shoal.client.inside",
    "print": "shoal.client.inside",
    "rejoin": "shoal.client.inside",
    "secede": "shoal.client.inside",
    "warn": "shoal.client.inside",
    "worker_client": "shoal.client.inside",
    "fire_and_forget": "shoal.client.keeping",
    "futures_of": "shoal.client.keeping",
    "sync": "shoal.client.loop",
    "get_task_stream": "shoal.client.questions",
    "rpc": "shoal.client.rpc",
    "as_completed": "shoal.client.waiting",
    "wait": "shoal.client.waiting",
    "as_distributed": "shoal.compat.importing",
    "Event": "shoal.coordination.boxes",
    "Queue": "shoal.coordination.boxes",
    "Variable": "shoal.coordination.boxes",
    "Lock": "shoal.coordination.locks",
    "MultiLock": "shoal.coordination.locks",
    "Semaphore": "shoal.coordination.locks",
    "ActiveMemoryManagerPolicy": "shoal.core.scheduler.amm",
    "ReduceReplicas": "shoal.core.scheduler.amm",
    "Adaptive": "shoal.deploy.adaptive",
    "Cluster": "shoal.deploy.cluster",
    "LocalCluster": "shoal.deploy.local",
    "ProcessInterface": "shoal.deploy.spec",
    "SpecCluster": "shoal.deploy.spec",
    "SSHCluster": "shoal.deploy.ssh",
    "SubprocessCluster": "shoal.deploy.subprocess",
    "KilledWorker": "shoal.errors",
    "Reschedule": "shoal.errors",
    "get_task_metadata": "shoal.observe.metadata",
    "progress": "shoal.observe.progress",
    "performance_report": "shoal.observe.report",
    "MemorySampler": "shoal.observe.sampler",
    "span": "shoal.observe.spans",
    "NannyPlugin": "shoal.plugins.base",
    "SchedulerPlugin": "shoal.plugins.base",
    "WorkerPlugin": "shoal.plugins.base",
    "CondaInstall": "shoal.plugins.builtin",
    "Environ": "shoal.plugins.builtin",
    "ForwardLoggingPlugin": "shoal.plugins.builtin",
    "InstallPlugin": "shoal.plugins.builtin",
    "PipInstall": "shoal.plugins.builtin",
    "UploadDirectory": "shoal.plugins.builtin",
    "UploadFile": "shoal.plugins.builtin",
    "Worker": "shoal.programs.joining",
    "Nanny": "shoal.programs.nannies",
    "Scheduler": "shoal.programs.servers",
    "Status": "shoal.programs.status",
    "Security": "shoal.security",
}
__all__ = [
    "AMMClientProxy",
    "ActiveMemoryManagerPolicy",
    "Actor",
    "ActorFuture",
    "Adaptive",
    "BaseActorFuture",
    "CancelledError",
    "Client",
    "ClientExecutor",
    "Cluster",
    "CondaInstall",
    "DumpArtefact",
    "Environ",
    "Event",
    "ForwardLoggingPlugin",
    "Future",
    "InstallPlugin",
    "KilledWorker",
    "LocalCluster",
    "Lock",
    "MemorySampler",
    "MultiLock",
    "Nanny",
    "NannyPlugin",
    "PipInstall",
    "ProcessInterface",
    "Queue",
    "ReduceReplicas",
    "Reschedule",
    "SSHCluster",
    "Scheduler",
    "SchedulerPlugin",
    "Security",
    "Semaphore",
    "SpecCluster",
    "Status",
    "SubprocessCluster",
    "TimeoutError",
    "UploadDirectory",
    "UploadFile",
    "Variable",
    "Worker",
    "WorkerPlugin",
    "as_completed",
    "as_distributed",
    "default_client",
    "fire_and_forget",
    "futures_of",
    "get_client",
    "get_task_metadata",
    "get_task_stream",
    "get_worker",
    "local_client",
    "performance_report",
    "print",
    "progress",
    "rejoin",
    "rpc",
    "secede",
    "span",
    "sync",
    "wait",
    "warn",
    "worker_client",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'shoal' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_EXPORTS[name]), name)
