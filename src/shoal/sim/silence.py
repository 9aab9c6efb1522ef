"""Machines that cannot be reached and do not say so: silent cuts, in one direction or both, for a while or for good.

Between workers, a transfer fails after the timeout. On a link with the scheduler both ends look at their pulses, with
the same accounting as real ones (``core/liveness.py``): who hears nothing gives the connection up, the other end hears
of that where the way to it is open, and where nobody comes back in time, both hear that the link is lost. A process
that is stopped does not look.
"""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, Final

from shoal.core.liveness import GRACE, LOOKS, FairClock, Pulse, Verdict

if TYPE_CHECKING:
    from shoal.sim.nannies import NannyNode
    from shoal.sim.network import Wire
    from shoal.sim.nodes import ClientNode, WorkerNode
    from shoal.sim.world import World

#: Seconds without a byte after which a machine is gone, in virtual time.
TIMEOUT: Final = 0.4
PERIOD: Final = TIMEOUT / LOOKS


def machine_of(name: str) -> str:
    """What workers of one nanny have in common."""
    return name.partition(".")[0]


class Partings:
    """Which workers cannot say anything to which others."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._ways: dict[tuple[str, str], int] = {}

    def part(self, one: str, other: str, rng: Random) -> None:
        """Nothing gets from ``one`` to ``other`` any more, and perhaps nothing back, for a while or for good."""
        ways = [(machine_of(one), machine_of(other))]
        if rng.random() < 0.6:
            ways.append(ways[0][::-1])
        for way in ways:
            self._ways[way] = self._ways.get(way, 0) + 1
        if rng.random() < 0.5:
            self._world.after(rng.choice([0.2, 1.0]), lambda: self._mend(ways))

    def _mend(self, ways: list[tuple[str, str]]) -> None:
        for way in ways:
            self._ways[way] -= 1

    def are_apart(self, one: str, other: str) -> bool:
        """Whether ``one`` cannot have an answer from ``other``: that needs both ways."""
        pair = (machine_of(one), machine_of(other))
        return bool(self._ways.get(pair) or self._ways.get(pair[::-1]))


class _End:
    """What one end of a silent link knows."""

    def __init__(self, deaf: bool) -> None:
        #: Whether nothing comes to it.
        self.deaf = deaf
        self.clock = FairClock(PERIOD)
        self.pulse: Pulse | None = None
        #: Since when it takes the connection for broken, and whether it has given the link up.
        self.cut: float | None = None
        self.over = False

    def look(self, now: float) -> bool:
        """Whether it finds only now that the other is gone."""
        fair = self.clock.look(now)
        if self.pulse is None:
            self.pulse = Pulse(TIMEOUT, fair)
        silent = self.pulse.look(fair, not self.deaf, True) is Verdict.SILENT
        if self.cut is None and silent and self.pulse.judge(fair, TIMEOUT):
            self.cut = now
            return True
        return False


class Silence:
    """One silent cut between the scheduler and another machine."""

    def __init__(
        self, world: World, node: WorkerNode | ClientNode | NannyNode, up: Wire, down: Wire, rng: Random
    ) -> None:
        self.world, self.node, self.up, self.down = world, node, up, down
        way = rng.choice(["both", "both", "up", "down"])
        self._here, self._there = _End(way != "down"), _End(way != "up")  # the scheduler, the other machine
        self._ended = False
        for wire, broken in ((up, way != "down"), (down, way != "up")):
            if broken:
                wire.interrupt()
        world.count(f"silent cuts ({way})")
        if rng.random() < 0.6:
            world.after(rng.choice([0.1, TIMEOUT, 2 * TIMEOUT]), self._mend)
        self._look()

    def _look(self) -> None:
        if self._ended:
            return
        now = self.world.now
        stopped = getattr(self.node, "stopped_until", 0.0) > now
        ends = [(self._here, self._there), *([] if stopped else [(self._there, self._here)])]
        for end, other in ends:
            if end.look(now):
                self.up.interrupt()  # the connection is closed
                self.down.interrupt()
                if not other.deaf and other.cut is None:
                    other.cut = now
        if self._here.cut is not None and now >= self._here.cut + TIMEOUT * GRACE:
            self._lose_here()
        if not stopped and self._there.cut is not None and now >= self._there.cut + TIMEOUT * GRACE:
            self._lose_there()
        if (self._here.over and self._there.over) or not self.node.alive:
            self._ended = True
            return
        self.world.after(PERIOD, self._look)

    def _lose_here(self) -> None:
        if not self._here.over:
            self._here.over = True
            self.up.break_off()
            self.down.break_off()
            self.world.count("machines that vanished")
            self.world.lose(self.node.name, self.node.role, "nothing was heard of its machine")

    def _lose_there(self) -> None:
        if not self._there.over:
            self._there.over = True
            self.world.bereave(self.node)

    def _mend(self) -> None:
        """Bytes get through again: the connection goes on, or another does, unless one end gave it up."""
        if self._ended:
            return
        self._ended = True
        if not self.node.alive:
            return
        if self._here.over or self._there.over:
            self._lose_there()  # it comes back, and is refused
            self._lose_here()
            return
        self.world.counters["messages said again"] += self.up.go_on() + self.down.go_on()
