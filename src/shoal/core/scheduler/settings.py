"""What the configuration says, as the scheduler's core needs it."""

from __future__ import annotations


class Settings:
    """What the configuration says, as the cores need it: plain values, read once."""

    __slots__ = (
        "allowed_failures", "amm_interval", "amm_running", "backlog", "bandwidth", "durations", "epoch",
        "events_keep", "events_length", "fill", "heartbeat_interval", "idle_timeout", "lease_check", "lease_timeout",
        "move_timeout",
        "no_workers_timeout", "patience", "paused_timeout", "rebalance", "saturation", "story_length", "stream_length",
        "unknown_duration", "validate", "worker_ttl",
    )  # fmt: skip

    def __init__(
        self,
        allowed_failures: int = 3,
        saturation: float = 1.1,
        backlog: float = 0.02,
        bandwidth: float = 100e6,
        unknown_duration: float = 0.5,
        durations: dict[str, float] | None = None,
        worker_ttl: float | None = 300.0,
        heartbeat_interval: float = 1.0,
        story_length: int = 100_000,
        validate: bool = False,
        stream_length: int = 100_000,
        no_workers_timeout: float | None = None,
        events_length: int = 1000,
        epoch: float = 0.0,
        events_keep: float = 3600.0,
        move_timeout: float = 30.0,
        fill: float = 0.8,
        amm_running: bool = True,
        amm_interval: float = 2.0,
        rebalance: tuple[float, float, float] = (0.3, 0.6, 0.1),
        idle_timeout: float | None = None,
        paused_timeout: float | None = None,
        lease_timeout: float = 30.0,
        lease_check: float = 10.0,
        patience: float = 30.0,
    ) -> None:
        self.allowed_failures = allowed_failures
        self.saturation = saturation
        self.backlog = backlog
        self.bandwidth = bandwidth
        self.unknown_duration = unknown_duration
        self.durations = durations or {}
        self.worker_ttl = worker_ttl
        self.heartbeat_interval = heartbeat_interval
        self.story_length = story_length
        self.validate = validate
        self.stream_length = stream_length
        self.no_workers_timeout = no_workers_timeout
        self.events_length = events_length
        #: Seconds to add to the scheduler's clock to have the time since 1970.
        self.epoch = epoch
        self.events_keep = events_keep
        #: Seconds without a copy after which a worker that was asked for some is not waited for.
        self.move_timeout = move_timeout
        #: The share of a worker's memory limit up to which it is given the results of those that leave.
        self.fill = fill
        self.amm_running, self.amm_interval = amm_running, amm_interval
        #: Shares of the memory limit: who gives some away, who takes some, and the gap that is left between the two.
        self.rebalance = rebalance
        #: Seconds without work after which the cluster closes.
        self.idle_timeout = idle_timeout
        #: Seconds for which a worker that is asked for a value may bring nothing.
        self.patience = patience
        #: Seconds for which a worker may take no tasks before it is replaced.
        self.paused_timeout = paused_timeout
        #: Seconds without a word of its client after which a lease is taken back, and between two looks at that.
        self.lease_timeout, self.lease_check = lease_timeout, lease_check
