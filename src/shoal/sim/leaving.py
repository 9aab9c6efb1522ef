"""Data that is put on workers, copies that are asked for, and workers that are told to leave, in several ways."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING, Any, Final

from shoal.core.client.future import FutureStatus
from shoal.core.events import PutDone
from shoal.ids import ClientId
from shoal.messages import AskRetirement, Options, Rebalance, Replicate, Retire

if TYPE_CHECKING:
    from shoal.sim.nodes import ClientNode
    from shoal.sim.world import World

_VALUE_BYTES: Final = 8


def _scatter(world: World, client: ClientNode, rng: Random) -> bool:
    """A client puts data on one worker or on several."""
    return scatter(world, client, rng)


def scatter(world: World, client: ClientNode, rng: Random, onto: str = "") -> bool:
    """Put data on some workers, or on that of this name."""
    if not world.workers or ClientId(client.name) not in world.scheduler.state.clients:
        return False
    oracle = world.oracle
    key = f"data{len(oracle.scattered)}-0"
    oracle.scattered.add(key)
    oracle.expects({key: []}, {key: world.fates.value(key, [])})
    world.fates.asked({key: []}, Options())
    for _ in range(rng.choice([1, 1, 2])):  # equal values have one key
        client.hold(key)
    client.scattering.add(key)
    _put(world, client, rng, key, 1 if rng.random() < 0.7 else 3, onto)
    return True


def _put(world: World, client: ClientNode, rng: Random, key: str, copies: int, onto: str) -> None:
    usable = [w for w in world.workers.values() if w.core.registered and w.core.takes(key)]
    usable = [w for w in usable if (w.nanny or w).name == onto] or usable
    if not usable or not client.alive:
        client.scattering.discard(key)
        client.give_up(key)
        return
    chosen = rng.sample(usable, min(copies, len(usable)))
    left, good = len(chosen), 0

    def noted(well: bool) -> None:
        nonlocal left, good
        left, good = left - 1, good + well
        if left or key not in client.core.futures:
            return
        if good:
            world.count("scattered data")
            world.after(rng.uniform(0, 0.1), wanted)
        else:
            client.scattering.discard(key)
            client.let_go(key)

    def wanted() -> None:
        client.scattering.discard(key)
        client.want(key)

    for number, worker in enumerate(chosen, 10 * len(world.oracle.scattered)):
        worker.puts[number] = noted
        worker.values[key] = world.fates.value(key, [])
        worker.tell(PutDone(client.name, [(key, _VALUE_BYTES, "bytes")], [], number))


def _some_workers(world: World, rng: Random, most: int) -> list[str]:
    """Names, as the scheduler knows them; perhaps of a worker that is starting."""
    names = list(world.nannies) if world.options.nannies else list(world.workers)
    return rng.sample(names, min(len(names), rng.randint(1, most)))


def _retire(world: World, client: ClientNode, rng: Random) -> bool:
    """A client retires some workers; a manager that does so ends their machines later."""
    names = _some_workers(world, rng, 3)
    options: dict[str, Any] = {}
    if not world.options.calm:
        options = {"force": rng.random() < 0.1, "patience": rng.choice([None, None, 0.0, 0.3])}
    if rng.random() < 0.4:
        options |= {"close": False, "remove": rng.random() < 0.5}
    return _ask(world, client, names, rng, **options)


def _shrink(world: World, client: ClientNode, rng: Random) -> bool:
    """A manager keeps one worker, or half of them; the other machines end seconds after it was told that they may."""
    count = len(world.nannies) if world.options.nannies else len(world.workers)
    return shrink_to(world, client, rng, 1 if rng.random() < 0.5 else (count + 1) // 2, rng.random() < 0.3)


def shrink_to(world: World, client: ClientNode, rng: Random, keep: int, close: bool) -> bool:
    """Retire all but ``keep`` workers, without closing them perhaps; end their machines later."""
    names = list(world.nannies) if world.options.nannies else list(world.workers)
    rng.shuffle(names)
    return _ask(world, client, names[keep:], rng, close=close, late=True)


def _ask(world: World, client: ClientNode, names: list[str], rng: Random, late: bool = False, **options: Any) -> bool:
    if not names:
        return False
    world.shrunk = True
    if options.get("force"):
        world.oracle.forced.update(w.name for w in world.workers.values() if (w.nanny or w).name in names)

    def answered(told: dict[str, Any]) -> None:
        for kept in told["kept"].values():
            world.count("workers that could not retire")
            world.note(f"kept: {kept}")
        for identity in told["retired"].values():
            if options.get("remove", True):
                world.oracle.left.add(identity["name"])
                if rng.random() < 0.2:
                    world.after(rng.uniform(0.0, 1.0), lambda name=identity["name"]: world.haunt(name))  # type: ignore[misc]
            if late and not identity["lost"]:
                world.after(rng.uniform(0.0, 2.0), lambda name=identity["name"]: world.end_machine(name))  # type: ignore[misc]

    client.request(lambda rid: Retire(rid, names, **options), answered)
    if rng.random() < 0.3:

        def put() -> None:
            """Just as it is told to go."""
            scatter(world, client, rng, rng.choice(names))

        world.after(rng.uniform(0.0, 0.3), put)
    return True


def _lifetime(world: World, client: ClientNode, rng: Random) -> bool:
    """A worker has lived long enough: it goes, and perhaps another takes its place."""
    workers = list(world.workers.values())
    if not workers:
        return False
    worker = rng.choice(workers)
    world.shrunk = True
    speaker = worker.nanny if worker.nanny is not None and rng.random() < 0.5 else worker
    patience = None if world.options.calm else rng.choice([None, 0.0, 0.5])
    if speaker.up is not None:
        speaker.up.send(AskRetirement("its time is over", patience, rng.random() < 0.5))
    return True


def _finished(client: ClientNode, rng: Random) -> list[str]:
    done = [key for key, record in client.core.futures.items() if record.status is FutureStatus.FINISHED]
    return rng.sample(done, min(len(done), 10))


def _replicate(world: World, client: ClientNode, rng: Random) -> bool:
    keys = _finished(client, rng)
    client.request(lambda rid: Replicate(rid, keys, rng.choice([None, 2, 3])))
    return bool(keys)


def _rebalance(world: World, client: ClientNode, rng: Random) -> bool:
    client.request(Rebalance)
    return True


LEAVING: Final[dict[str, Callable[[World, ClientNode, Random], bool]]] = {
    "scatter": _scatter,
    "retire": _retire,
    "shrink": _shrink,
    "lifetime": _lifetime,
    "replicate": _replicate,
    "rebalance": _rebalance,
}
