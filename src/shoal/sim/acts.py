"""What happens to the cluster, and what its users do, drawn from the seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Final

from shoal.core.events import Command, LinkLost, Spilling, ValuesLost
from shoal.core.worker.replica import ReplicaState
from shoal.messages import Options as TaskOptions
from shoal.sim.fates import SHAPES
from shoal.sim.leaving import LEAVING
from shoal.sim.options import Options
from shoal.sim.workload import graph

if TYPE_CHECKING:
    from shoal.sim.nannies import NannyNode
    from shoal.sim.nodes import ClientNode, WorkerNode
    from shoal.sim.world import World

#: Seconds of virtual time in which acts happen.
TROUBLE: Final = 3.0
#: Hosts that workers stand on in turn.
HOSTS: Final = ("h0", "h1")

#: What may happen, with its weight.
WEIGHTS: Final = {
    "crash": 3, "join": 3, "cut": 2, "interruption": 4, "half-open link": 1, "slow worker": 2, "slow link": 2,
    "deaf worker": 2, "forgetful worker": 2, "stopped worker": 2, "lost heartbeats": 1, "pause": 3, "memory": 1,
    "spilling": 3, "other resources": 4,
    "nanny restart": 1, "nanny death": 1, "release": 4, "cancel": 3, "resubmit": 4, "retry": 2,
    "changes of mind": 4, "vanish": 1, "restart": 1, "redefine": 5, "restart of some": 2, "nanny orders": 2,
    "nanny leaves": 2, "broken files": 2, "scatter": 5, "retire": 4, "shrink": 2, "lifetime": 2, "replicate": 2,
    "rebalance": 1, "full link": 3, "parted workers": 3, "silent cut": 3,
}  # fmt: skip
#: What may happen in calm runs.
CALM: Final = {
    "join": 3, "interruption": 3, "slow worker": 2, "slow link": 2, "stopped worker": 1, "lost heartbeats": 1,
    "pause": 4, "scatter": 5, "retire": 6, "shrink": 4, "lifetime": 3, "replicate": 2, "rebalance": 2,
    "full link": 2, "parted workers": 2,
}  # fmt: skip


@dataclass(frozen=True)
class Act:
    """Something that happens to the cluster, or that a user does."""

    at: float
    kind: str
    seed: int

    def __str__(self) -> str:
        return f"{self.at:.4f} {self.kind} ({self.seed})"


def draw_acts(options: Options, skip: frozenset[int]) -> list[Act]:
    """All acts of a run in their order, without those whose numbers are to be skipped."""
    rng = Random(f"acts-{options.seed}")
    acts = [
        Act(0.0 if n == 0 else rng.uniform(0, TROUBLE), "submit", rng.randrange(10**6))
        for n in range(options.submissions)
    ]
    weighed = CALM if options.calm else WEIGHTS
    kinds, weights = list(weighed), list(weighed.values())
    acts += [
        Act(rng.uniform(0, TROUBLE), rng.choices(kinds, weights)[0], rng.randrange(10**6))
        for _ in range(options.faults)
    ]
    acts.sort(key=lambda act: act.at)
    return [act for number, act in enumerate(acts) if number not in skip]


def perform(world: World, act: Act) -> None:
    """Do what ``act`` says, to whom its seed says."""
    rng = Random(f"act-{act.seed}")
    world.note(f"-- {act.kind}")
    clients = [client for client in world.clients.values() if client.alive]
    client = rng.choice(clients) if clients else world.enter()
    held = [key for key in client.core.futures if key not in client.scattering]
    some = rng.sample(held, min(len(held), rng.randint(1, 3)))
    workers = list(world.workers.values())
    worker = rng.choice(workers) if workers else None
    if act.kind in LEAVING:
        done = LEAVING[act.kind](world, client, rng)
    elif act.kind in _BY_USERS:
        done = _BY_USERS[act.kind](world, client, rng, some)
    elif act.kind == "join":
        done = world.join() is not None
    else:
        done = worker is not None and _TO_WORKERS[act.kind](world, worker, rng)
    if done:
        world.count(act.kind)


# ------------------------------------------------------------------------------------------------ users


def submit(world: World, client: ClientNode, rng: Random, some: list[str]) -> bool:
    """A graph of new tasks, perhaps on futures that the client holds."""
    options, oracle = world.options, world.oracle
    tasks = graph(options.shape, options.tasks, rng, f"t{len(oracle.tasks)}")
    expected = world.fates.sequential(tasks)
    if options.large:  # all of it is to be computed
        inner = {dep for deps in tasks.values() for dep in deps}
        wants = [key for key in tasks if key not in inner]
    else:
        wants = rng.sample(list(tasks), min(len(tasks), rng.randint(1, 6)))
    known = client.core.futures.keys() - client.scattering
    held = [key for key in oracle.tasks if key in known and rng.random() < 0.3][:3]
    if held:
        key = f"on{len(oracle.tasks)}-0"
        tasks[key] = held
        expected[key] = world.fates.value(key, [oracle.expected[dep] for dep in held])
        wants.append(key)
    oracle.expects(tasks, expected)
    needs = dict(rng.choice(SHAPES)) if options.resources and rng.random() < 0.6 else None
    hosts, others = None, False
    if options.restricted and rng.random() < 0.5:
        hosts, others = [rng.choice(HOSTS)], rng.random() < 0.3
        world.count("submissions to one host")
    world.count("submissions with resources" if needs else "submissions without resources")
    pool = "io" if options.executors and rng.random() < 0.5 else ""
    if pool:
        world.count("submissions to another pool")
    actors = options.actors and rng.random() < 0.5
    if actors:
        world.count("submissions of actors")
    apart = 0.0 if not (pool or actors) and rng.random() < 0.2 else None
    if apart is not None:
        world.count("submissions to processes of their own")
    asked = TaskOptions(rng.randint(-1, 1), options.retries, hosts, others, needs, pool, actors, apart)
    if rng.random() < 0.2:
        wants.append(wants[0])
        world.count("keys that were wanted twice")
    world.submit(client, tasks, wants, asked)
    if not options.calm and rng.random() < 0.1:
        client.release(wants[-1], by_hand=True)
        world.count("releases at once")
    return True


def resubmit(
    world: World, client: ClientNode, rng: Random, key: str = "", payloads: dict[str, bytes] | None = None
) -> bool:
    """The same keys again, with all that they are computed from, as they were submitted first."""
    if not world.oracle.tasks:
        return False
    key = key or rng.choice(list(world.oracle.tasks))
    needed = world.oracle.ancestors(key)
    if needed & world.oracle.scattered:
        return False
    batches: list[tuple[TaskOptions, dict[str, list[str]]]] = []
    for name, deps in world.oracle.tasks.items():
        if name in needed:
            asked = world.fates.first_asked(name)
            if not batches or batches[-1][0] is not asked:
                batches.append((asked, {}))
            batches[-1][1][name] = deps
    for options, tasks in batches:
        world.submit(client, tasks, [key] if key in tasks else list(tasks), options, payloads)
    return True


def _redefine(world: World, client: ClientNode, rng: Random, some: list[str]) -> bool:
    """Let go of a key, and submit it anew, with another task under its name or that of something it is made of."""
    if not some or some[0] not in world.oracle.tasks:
        return False
    key = some[0]
    if world.oracle.ancestors(key) & world.oracle.scattered:
        return False
    changed = rng.choice(sorted(world.oracle.ancestors(key)))
    client.give_up(key)

    def again() -> None:
        if client.alive:
            resubmit(world, client, rng, key, {changed: b"another"})

    world.after(rng.choice([0.0, 0.001, 0.05]), again)
    return True


def _release(world: World, client: ClientNode, rng: Random, some: list[str]) -> bool:
    for key in some:
        client.release(key, by_hand=rng.random() < 0.5)
    return bool(some)


def _cancel(world: World, client: ClientNode, rng: Random, some: list[str]) -> bool:
    if not some:
        return False
    client.cancel(some, rng.random() < 0.3)
    if rng.random() < 0.3:
        client.cancel(some * 2, force=False)
    if rng.random() < 0.5:  # and changes their mind at once
        resubmit(world, client, rng, some[0])
    return True


def _retry(world: World, client: ClientNode, rng: Random, some: list[str]) -> bool:
    client.retry(some * rng.randint(1, 2))
    return bool(some)


def _fill_link(world: World, client: ClientNode, rng: Random, some: list[str]) -> bool:
    """A client does not read for a while, and the scheduler sees that too much is owed to it."""
    return world.fill(client, rng.choice([0.01, 0.3, 1.0, 2.0]), rng.choice([1, 2, 1000]))


def _vanish(world: World, client: ClientNode, rng: Random, some: list[str]) -> bool:
    world.vanish(client)
    return True


def _restart(world: World, client: ClientNode, rng: Random, some: list[str]) -> bool:
    client.restart()
    return True


def _restart_some(world: World, client: ClientNode, rng: Random, some: list[str]) -> bool:
    names = [worker.name for worker in world.workers.values()]
    client.restart([*rng.sample(names, min(len(names), 2)), *(["nobody"] if rng.random() < 0.2 else [])])
    return bool(names)


def _change_mind(world: World, client: ClientNode, rng: Random, some: list[str]) -> bool:
    """Let go of keys and want them again, several times in a short while."""
    if some:
        _release_and_want(world, client, rng, some, rng.randint(2, 6))
    return bool(some)


def _release_and_want(world: World, client: ClientNode, rng: Random, keys: list[str], times: int) -> None:
    if not client.alive:
        return
    for key in keys:
        client.give_up(key)
    pauses = [0.0, 0.001, 0.05, 0.3]

    def again() -> None:
        if client.alive:
            for key in keys:
                resubmit(world, client, rng, key)
            if times > 1:
                world.after(rng.choice(pauses), lambda: _release_and_want(world, client, rng, keys, times - 1))

    world.after(rng.choice(pauses), again)


_BY_USERS: Final[dict[str, Callable[[World, ClientNode, Random, list[str]], bool]]] = {
    "submit": submit,
    "resubmit": lambda world, client, rng, some: resubmit(world, client, rng),
    "release": _release,
    "cancel": _cancel,
    "retry": _retry,
    "vanish": _vanish,
    "full link": _fill_link,
    "restart": _restart,
    "restart of some": _restart_some,
    "changes of mind": _change_mind,
    "redefine": _redefine,
}


# ------------------------------------------------------------------------------------------------ workers


def _crash(world: World, worker: WorkerNode, rng: Random) -> bool:
    world.crash(worker, "crash")
    return True


def _cut(world: World, worker: WorkerNode, rng: Random) -> bool:
    """Both ends learn of it, each in its own time; what was under way is gone."""
    world.sever(worker)
    name = worker.name
    world.after(rng.uniform(0, 0.5), lambda: world.lose(name, "worker", "cut"))
    world.after(rng.uniform(0, 0.5), lambda: worker.tell(LinkLost("scheduler", "s", "cut")))
    return True


def _interrupt(world: World, worker: WorkerNode, rng: Random) -> bool:
    """The connection of a worker or of a client breaks, and another takes its place a while later."""
    nodes: list[WorkerNode | ClientNode] = [worker, *world.clients.values()]
    node = rng.choice(nodes)
    down = world.down(node)
    if node.up is None or down is None or node.up.interrupted or down.interrupted:
        return False
    wires = (node.up, down)
    for wire in wires:
        wire.interrupt()

    def go_on() -> None:
        world.counters["messages said again"] += sum(wire.go_on() for wire in wires)

    world.after(rng.choice([0.01, 0.2, 1.0]), go_on)
    return True


def _part(world: World, worker: WorkerNode, rng: Random) -> bool:
    """Two workers cannot reach each other; the scheduler can reach both."""
    others = [other.name for other in world.workers.values() if other is not worker]
    if others:
        world.partings.part(worker.name, rng.choice(others), rng)
    return bool(others)


def _fall_silent(world: World, worker: WorkerNode, rng: Random) -> bool:
    """A machine and the scheduler's cannot reach each other, and nobody is told."""
    nodes: list[WorkerNode | ClientNode | NannyNode] = [worker, *world.nannies.values(), *world.clients.values()]
    return world.silence(rng.choice(nodes), rng)


def _half_open(world: World, worker: WorkerNode, rng: Random) -> bool:
    """What one end says, or both, is lost, and nobody is told: only silence tells."""
    down = world.down(worker)
    if world.options.ttl is None or worker.up is None or down is None:
        return False
    worker.up.swallows = True
    world.silent_since.setdefault(worker.name, world.now)
    down.swallows = rng.random() < 0.5
    return True


def _slow(world: World, worker: WorkerNode, rng: Random) -> bool:
    worker.slowness = rng.choice([3.0, 10.0])
    return True


def _slow_link(world: World, worker: WorkerNode, rng: Random) -> bool:
    down = world.down(worker)
    if worker.up is None or down is None:
        return False
    worker.up.slowness, down.slowness = rng.uniform(0.0, 0.5), rng.uniform(0.0, 0.5)
    return True


def _forgetful(world: World, worker: WorkerNode, rng: Random) -> bool:
    worker.forgets = rng.randint(1, 3)
    return True


def _deaf(world: World, worker: WorkerNode, rng: Random) -> bool:
    worker.deaf_until = world.now + rng.uniform(0.1, 1.0)
    return True


def _break_files(world: World, worker: WorkerNode, rng: Random) -> bool:
    known = worker.core.keys  # a value of which it is not said yet that it is there has no file
    held = sorted(key for key in worker.values if key in known and known[key].replica is ReplicaState.HELD)
    keys = rng.sample(held, min(len(held), rng.randint(1, 3)))
    world.oracle.excused.update(keys)
    for key in keys:
        del worker.values[key]
    if keys:
        worker.broken |= set(keys)
        worker.tell(ValuesLost(keys))
    return bool(keys)


def _stop(world: World, worker: WorkerNode, rng: Random) -> bool:
    worker.stopped_until = world.now + rng.choice([0.1, 0.5, 2.0])
    return True


def _lose_heartbeats(world: World, worker: WorkerNode, rng: Random) -> bool:
    worker.beats = False
    return True


def _pause(world: World, worker: WorkerNode, rng: Random) -> bool:
    worker.pause(rng.choice([0.0, 0.01, 0.3, 1.5, 100.0]))
    return True


def _spill(world: World, worker: WorkerNode, rng: Random) -> bool:
    """Results take too much memory for a while; most of them go to disk, now these and now those."""
    seconds = rng.choice([0.01, 0.3, 2.0])

    def move(rest: int) -> None:
        held = sorted(key for key, record in worker.core.keys.items() if record.replica is ReplicaState.HELD)
        spilled = [key for key in held if rng.random() < 0.7]
        worker.tell(Spilling(rest > 0, spilled, [key for key in held if key not in spilled]))
        if rest and worker.alive:
            world.after(seconds, lambda: move(rest - 1))

    move(rng.randint(1, 4))
    return True


def _offer(world: World, worker: WorkerNode, rng: Random) -> bool:
    """Somebody gives a worker other resources."""
    if world.options.resources:
        worker.offer({"R": rng.choice([0.0, 0.5, 1.0, 3.0]), "G": rng.choice([0.0, 0.2, 1.0])})
    return world.options.resources


def _use_memory(world: World, worker: WorkerNode, rng: Random) -> bool:
    if worker.nanny is not None:
        worker.nanny.use_too_much()
    return worker.nanny is not None


def _restart_one(world: World, worker: WorkerNode, rng: Random) -> bool:
    if worker.nanny is not None:
        worker.nanny.tell(Command("restart", "asked for"))
    return worker.nanny is not None


def _order(world: World, worker: WorkerNode, rng: Random) -> bool:
    """Several who own the nanny want different things, at once and a little later."""
    nanny = worker.nanny
    if nanny is not None:
        for _ in range(rng.randint(1, 4)):
            order = Command(rng.choice(["start", "restart", "kill"]), "ordered", rng.choice([0.0, 0.1, 10.0]))
            world.after(rng.choice([0.0, 0.0, 0.1, 0.5]), lambda order=order: nanny.tell(order))  # type: ignore[misc]
    return nanny is not None


def _leave(world: World, worker: WorkerNode, rng: Random) -> bool:
    """The nanny is not to bring its worker back; the worker goes soon."""
    if worker.nanny is not None:
        worker.nanny.tell(Command("leave", "enough"))
        world.after(rng.uniform(0.0, 0.5), lambda: world.crash(worker, "the end"))
    return worker.nanny is not None


def _nanny_dies(world: World, worker: WorkerNode, rng: Random) -> bool:
    if worker.nanny is not None:
        world.leave(worker.nanny)
    return worker.nanny is not None


_TO_WORKERS: Final[dict[str, Callable[[World, WorkerNode, Random], bool]]] = {
    "crash": _crash,
    "cut": _cut,
    "interruption": _interrupt,
    "half-open link": _half_open,
    "parted workers": _part,
    "silent cut": _fall_silent,
    "slow worker": _slow,
    "slow link": _slow_link,
    "forgetful worker": _forgetful,
    "broken files": _break_files,
    "deaf worker": _deaf,
    "stopped worker": _stop,
    "lost heartbeats": _lose_heartbeats,
    "pause": _pause,
    "memory": _use_memory,
    "spilling": _spill,
    "other resources": _offer,
    "nanny restart": _restart_one,
    "nanny death": _nanny_dies,
    "nanny orders": _order,
    "nanny leaves": _leave,
}
