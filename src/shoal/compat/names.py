"""Which names of dask.distributed are found where: by its modules, as ``module:attribute`` of shoal or of others."""

from __future__ import annotations

from typing import Final

from shoal import _EXPORTS

_TOP: Final = {name: f"{module}:{name}" for name, module in _EXPORTS.items()}


def _of_top(*names: str, **more: str) -> dict[str, str]:
    return {**{name: _TOP[name] for name in names}, **more}


_ERRORS = "shoal.errors:"
_UTILS = "shoal.compat.utils:"
_COMM = {
    "CommClosedError": _ERRORS + "LinkError",
    **{
        name: _UTILS + name
        for name in (
            "get_address_host",
            "get_address_host_port",
            "normalize_address",
            "parse_address",
            "parse_host_port",
            "resolve_address",
            "unparse_address",
            "unparse_host_port",
        )
    },
}
_SERIALIZE = {name: _UTILS + name for name in ("deserialize", "serialize", "to_serialize")}

#: By module of dask.distributed, by name.
MODULES: Final[dict[str, dict[str, str]]] = {
    "distributed": {
        **_TOP,
        "__version__": _UTILS + "VERSION",
        "config": "dask.config:config",
        "dask": "dask",
    },
    "distributed.actor": _of_top("Actor", "ActorFuture", "BaseActorFuture"),
    "distributed.active_memory_manager": _of_top("ActiveMemoryManagerPolicy", "AMMClientProxy", "ReduceReplicas"),
    "distributed.cfexecutor": _of_top("ClientExecutor"),
    "distributed.client": _of_top(
        "CancelledError",
        "Client",
        "Future",
        "TimeoutError",
        "as_completed",
        "default_client",
        "fire_and_forget",
        "futures_of",
        "get_task_metadata",
        "get_task_stream",
        "performance_report",
        "progress",
        "wait",
        ALL_COMPLETED="shoal.client.waiting:ALL_COMPLETED",
        FIRST_COMPLETED="shoal.client.waiting:FIRST_COMPLETED",
        DoneAndNotDoneFutures="shoal.client.waiting:DoneAndNotDone",
        FutureCancelledError=_ERRORS + "FutureCancelledError",
        FuturesCancelledError=_ERRORS + "FutureCancelledError",
        ClosedClientError=_ERRORS + "ClosedClientError",
        _get_global_client="shoal.client.current:current_client",
        get_client=_TOP["get_client"],
    ),
    "distributed.cluster_dump": _of_top("DumpArtefact"),
    "distributed.comm": _COMM,
    "distributed.comm.addressing": _COMM,
    "distributed.comm.core": _COMM,
    "distributed.core": _of_top("Status", "rpc", CommClosedError=_ERRORS + "LinkError"),
    "distributed.deploy": _of_top(
        "Adaptive", "Cluster", "LocalCluster", "ProcessInterface", "SSHCluster", "SpecCluster", "SubprocessCluster"
    ),
    "distributed.deploy.adaptive": _of_top("Adaptive"),
    "distributed.deploy.adaptive_core": {"AdaptiveCore": "shoal.deploy.adaptive:AdaptiveCore"},
    "distributed.deploy.cluster": _of_top("Cluster"),
    "distributed.deploy.local": _of_top("LocalCluster"),
    "distributed.deploy.spec": _of_top("ProcessInterface", "SpecCluster"),
    "distributed.deploy.ssh": _of_top("SSHCluster"),
    "distributed.deploy.subprocess": _of_top("SubprocessCluster"),
    "distributed.diagnostics": _of_top("SchedulerPlugin", "WorkerPlugin", "MemorySampler", "progress"),
    "distributed.diagnostics.memory_sampler": _of_top("MemorySampler"),
    "distributed.diagnostics.plugin": _of_top(
        "CondaInstall",
        "Environ",
        "ForwardLoggingPlugin",
        "InstallPlugin",
        "NannyPlugin",
        "PipInstall",
        "SchedulerPlugin",
        "UploadDirectory",
        "UploadFile",
        "WorkerPlugin",
    ),
    "distributed.diagnostics.progressbar": _of_top("progress"),
    "distributed.event": _of_top("Event"),
    "distributed.exceptions": _of_top(
        "Reschedule", "TimeoutError", WorkerStartTimeoutError=_ERRORS + "WorkerStartTimeoutError"
    ),
    "distributed.lock": _of_top("Lock"),
    "distributed.metrics": {"time": "time:time", "thread_time": "time:thread_time", "monotonic": "time:monotonic"},
    "distributed.multi_lock": _of_top("MultiLock"),
    "distributed.nanny": _of_top("Nanny"),
    "distributed.protocol": _SERIALIZE,
    "distributed.protocol.pickle": {"dumps": "cloudpickle:dumps", "loads": "pickle:loads"},
    "distributed.protocol.serialize": _SERIALIZE,
    "distributed.queues": _of_top("Queue"),
    "distributed.scheduler": _of_top(
        "KilledWorker",
        "Scheduler",
        NoValidWorkerError=_ERRORS + "NoValidWorkerError",
        WorkerStartTimeoutError=_ERRORS + "WorkerStartTimeoutError",
    ),
    "distributed.security": _of_top("Security"),
    "distributed.semaphore": _of_top("Semaphore"),
    "distributed.spans": _of_top("span"),
    "distributed.threadpoolexecutor": _of_top("rejoin", "secede"),
    "distributed.utils": _of_top(
        "TimeoutError",
        "sync",
        **{
            name: _UTILS + name
            for name in (
                "CancelledError",
                "LoopRunner",
                "format_bytes",
                "format_time",
                "funcname",
                "get_ip",
                "get_ip_interface",
                "has_keyword",
                "import_term",
                "is_coroutine_function",
                "iscoroutinefunction",
                "key_split",
                "log_errors",
                "nbytes",
                "open_port",
                "parse_bytes",
                "parse_timedelta",
                "thread_state",
                "tmpfile",
                "typename",
                "wait_for",
            )
        },
    ),
    "distributed.variable": _of_top("Variable"),
    "distributed.versions": {"get_versions": "shoal.shell.inspection:versions"},
    "distributed.worker": _of_top(
        "Reschedule",
        "Worker",
        "get_client",
        "get_worker",
        "print",
        "secede",
        "warn",
        thread_state=_UTILS + "thread_state",
        TOTAL_MEMORY=_UTILS + "TOTAL_MEMORY",
    ),
    "distributed.worker_client": _of_top(
        "get_worker", "get_client", "local_client", "rejoin", "secede", "worker_client"
    ),
}
