"""Which copies to ask which peer for.

At most one transfer for each peer at a time, a limit on transfers over all, and several keys in one request up to a
byte limit. What a peer has that cannot be reached is asked for by way of the scheduler, and the peer itself tried
again after a growing while; where the scheduler cannot have it either, the peer is left alone for a while. The heaps
of wanted keys are lazy: an entry whose key has been got elsewhere is dropped when it surfaces.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from heapq import heappop, heappush
from typing import Final

from shoal.core.effects import Fetch
from shoal.core.worker.key import KeyRecord
from shoal.core.worker.replica import ReplicaState

#: Bytes asked for in one request (a single larger value is still asked for).
MESSAGE_BYTES: Final = 50_000_000
#: Transfers under way at the same time, and the bytes that they are expected to bring: beyond that none is begun.
TRANSFERS: Final = 50
BYTES_IN_FLIGHT: Final = 500_000_000
#: Seconds that an unreachable peer is left alone, doubled each time.
BACKOFF_FIRST, BACKOFF_MOST = 0.05, 2.0
#: Seconds for which what a peer has that could not be reached comes by way of the scheduler, doubled each time.
ROUND_FIRST, ROUND_MOST = 10.0, 300.0
#: Peers of which that is remembered.
ROUND_PEERS: Final = 1000


def hosts_of(addresses: Iterable[str]) -> frozenset[str]:
    """The hosts in addresses of the form ``tcp://host:port``."""
    return frozenset(
        rest.rpartition(":")[0]
        for scheme, _, rest in (one.partition("://") for one in addresses)
        if scheme in ("tcp", "tls")
    )


class Fetcher:
    """The plan of transfers."""

    __slots__ = (
        "_backoff",
        "_bytes",
        "_far",
        "_idle",
        "_rid",
        "_round",
        "_rounds",
        "_seq",
        "_wants",
        "bytes_in_flight",
        "hosts",
        "in_flight",
        "message_bytes",
        "most_in_flight",
        "peers",
    )  # fmt: skip

    def __init__(self) -> None:
        #: Where this worker listens: peers there are asked before others.
        self.hosts: frozenset[str] = frozenset()
        self.message_bytes, self.most_in_flight = MESSAGE_BYTES, BYTES_IN_FLIGHT
        self._far: dict[str, bool] = {}
        #: Bytes that are expected, over all and by peer.
        self.bytes_in_flight = 0
        self._bytes: dict[str, int] = {}
        #: Addresses by peer id.
        self.peers: dict[str, list[str]] = {}
        #: Keys under way, by peer.
        self.in_flight: dict[str, dict[str, KeyRecord]] = {}
        self._wants: dict[str, list[tuple[tuple[int, int, int], int, KeyRecord]]] = {}
        self._idle: dict[str, None] = {}
        #: When an unreachable peer may be tried again, and the pause after that.
        self._backoff: dict[str, tuple[float, float]] = {}
        self._seq = 0
        #: Until when a peer is asked by way of the scheduler, and the time after that; and such requests, by peer.
        self._round: dict[str, tuple[float, float]] = {}
        self._rounds: dict[str, int] = {}
        self._rid = 0

    def meet(self, peers: dict[str, list[str]]) -> None:
        """Take the addresses of peers; one without any is gone, and is forgotten."""
        for peer, addresses in peers.items():
            if addresses:
                self.peers[peer] = addresses
                continue
            for table in (self.peers, self._far, self._backoff):
                table.pop(peer, None)
            if not any(peer in record.holders for _, _, record in self._wants.get(peer, ())):
                self._wants.pop(peer, None)

    def limit(self, nbytes: int) -> None:
        """Have no more than ``nbytes`` on the way at the same time, but for single values that are larger."""
        self.most_in_flight = min(BYTES_IN_FLIGHT, nbytes)
        self.message_bytes = min(MESSAGE_BYTES, nbytes)

    def want(self, record: KeyRecord) -> None:
        """``record`` entered ``fetch``: put it on the list of each of its holders."""
        self._seq += 1
        for peer in record.holders:
            heappush(self._wants.setdefault(peer, []), (record.priority, self._seq, record))
            if peer not in self.in_flight:
                self._idle[peer] = None

    def plan(self, now: float) -> Iterator[tuple[Fetch, list[KeyRecord]]]:
        """Yield transfers to begin; the caller advances the records of one before it asks for the next."""
        for peer in sorted(self._idle, key=self._nearness) if len(self._idle) > 1 else tuple(self._idle):
            if len(self.in_flight) >= TRANSFERS or self.bytes_in_flight >= self.most_in_flight:
                break
            pause = self._backoff.get(peer)
            if pause is not None and now < pause[0]:
                continue
            del self._idle[peer]
            records = self._pick(peer)
            if not records:
                self._wants.pop(peer, None)
                continue
            self.in_flight[peer] = {record.key: record for record in records}
            self._bytes[peer] = size = sum(max(record.nbytes, 0) for record in records)
            self.bytes_in_flight += size
            keys = [record.key for record in records]
            yield Fetch(peer, self.peers.get(peer, []), keys, self.message_bytes), records

    def _nearness(self, peer: str) -> tuple[bool, bool]:
        return peer in self._round, self._is_far(peer)

    def is_round(self, peer: str, now: float) -> bool:
        """Whether ``peer`` is to be asked by way of the scheduler now."""
        found = self._round.get(peer)
        return found is not None and now < found[0]

    def begin_round(self, peer: str) -> int:
        """``peer`` is asked by way of the scheduler; return the number of that request."""
        self._rid += 1
        self._rounds[peer] = self._rid
        return self._rid

    def came_round(self, rid: int) -> str | None:
        """Return which peer was asked so by way of the scheduler; None if nobody waits for the answer."""
        return next((peer for peer, other in self._rounds.items() if other == rid), None)

    def _is_far(self, peer: str) -> bool:
        """Whether ``peer`` is on another host."""
        far = self._far.get(peer)
        if far is None:
            far = self._far[peer] = self.hosts.isdisjoint(hosts_of(self.peers.get(peer, ())))
        return far

    def _pick(self, peer: str) -> list[KeyRecord]:
        heap = self._wants.get(peer, [])
        picked: dict[KeyRecord, None] = {}
        size = 0
        while heap:
            record = heap[0][2]
            if record.replica is not ReplicaState.FETCH or peer not in record.holders or record in picked:
                heappop(heap)
                continue
            if picked and size + record.nbytes > self.message_bytes:
                break
            heappop(heap)
            picked[record] = None
            size += max(record.nbytes, 0)
        return list(picked)

    def ended(self, peer: str) -> dict[str, KeyRecord]:
        """The transfer from ``peer`` ended; return what was under way."""
        records = self.in_flight.pop(peer, {})
        self._rounds.pop(peer, None)
        self.bytes_in_flight -= self._bytes.pop(peer, 0)
        if self._wants.get(peer):
            self._idle[peer] = None
        return records

    def reached(self, peer: str) -> None:
        """``peer`` answered, itself or by way of the scheduler; to be called before :meth:`ended`."""
        self._backoff.pop(peer, None)
        if peer not in self._rounds:
            self._round.pop(peer, None)

    def failed(self, peer: str, now: float) -> bool:
        """``peer`` did not answer; return whether no way is left. To be called before :meth:`ended`."""
        if peer in self._rounds:
            self.unreachable(peer, now)
            return True
        pause = self._round.get(peer, (0.0, ROUND_FIRST))[1]
        if len(self._round) >= ROUND_PEERS:
            del self._round[next(iter(self._round))]
        self._round[peer] = (now + pause, min(2 * pause, ROUND_MOST))
        return False

    def unreachable(self, peer: str, now: float) -> None:
        """Leave ``peer`` alone for a while."""
        pause = self._backoff.get(peer, (0.0, BACKOFF_FIRST))[1]
        self._backoff[peer] = (now + pause, min(2 * pause, BACKOFF_MOST))

    def deadline(self) -> float | None:
        """When a peer that is left alone may be tried again, if one has work waiting."""
        due = [self._backoff[peer][0] for peer in self._idle if peer in self._backoff and self._wants.get(peer)]
        return min(due, default=None)
