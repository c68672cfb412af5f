"""The coordinator of a simulated consumer group, after KIP-848.

Constraints
- A partition is given to one member at a time: it goes to the next when the one before says that it let go, has left,
  was silent for `SESSION_US`, or kept it for `REVOKE_MOST_US` after it was asked.
- A member's epoch moves on when it has let go of all that it was asked for. Commits name it; an older one is refused.
- Positions that a transaction is about to change cannot be read until it is decided.
"""

from collections import Counter
from collections.abc import Iterable

import msgspec

from pipelines.sim.clock import Clock, Signal
from pipelines.sim.kafka import Transaction
from pipelines.transport.base import Commit, Partition

SESSION_US = 3_000_000
REVOKE_MOST_US = 20_000_000
"""Kafka's own is five minutes; a worker keeps a partition for one at most (`RELEASE_MOST_US` here)."""


class UnknownMember(Exception):
    """It was given up, or has left."""


class StaleMember(Exception):
    """A commit names an epoch that has passed."""


class Reply(msgspec.Struct, frozen=True):
    """What a member is told."""

    epoch: int
    partitions: frozenset[Partition]


class Member:
    """One member, as the coordinator knows it."""

    def __init__(self, now_us: int) -> None:
        self.heard_us, self.asked_us = now_us, -1
        self.epoch = 0
        self.given: set[Partition] = set()


class Group:
    """The coordinator."""

    def __init__(self, clock: Clock, partitions: Iterable[Partition]) -> None:
        self._clock = clock
        self._partitions = sorted(partitions)
        self.committed = {partition: Commit(0) for partition in self._partitions}
        """First positions are written when a pipeline is created."""
        self.members: dict[str, Member] = {}
        self._epoch = 0
        self._targets: dict[str, set[Partition]] = {}
        self._pending: Counter[Partition] = Counter()
        self.decided = Signal(clock)
        """A transaction's positions are."""
        clock.every(SESSION_US // 10, self._sweep)

    def heartbeat(self, name: str, epoch: int, owned: frozenset[Partition] | None) -> Reply:
        """A member is alive, with `epoch` 0 it joins. `owned` is None while it takes or gives partitions.

        Raises `UnknownMember`.
        """
        member = self.members.get(name)
        if epoch == 0:
            if member is not None:
                self._remove([name])
            member = self.members[name] = Member(self._clock.now_us)
            self._assign()
        elif member is None:
            raise UnknownMember
        member.heard_us = self._clock.now_us
        target = self._targets[name]
        leaving = member.given - target
        if leaving and owned is not None and not (owned & leaving):
            member.given -= leaving
            leaving = set()
        if leaving:
            if member.asked_us < 0:
                member.asked_us = self._clock.now_us
            return Reply(member.epoch, frozenset(member.given & target))
        member.asked_us, member.epoch = -1, self._epoch
        member.given |= target - {one for other in self.members.values() for one in other.given}
        return Reply(member.epoch, frozenset(member.given))

    def leave(self, name: str) -> None:
        """A member lets go of all."""
        if name in self.members:
            self._remove([name])

    def check(self, name: str, epoch: int) -> None:
        """Whether a member may commit. Raises `StaleMember`."""
        member = self.members.get(name)
        if member is None or member.epoch != epoch:
            raise StaleMember

    def owner(self, partition: Partition) -> str | None:
        """Who was given it."""
        return next((name for name, member in self.members.items() if partition in member.given), None)

    def positions(self, partitions: Iterable[Partition]) -> dict[Partition, Commit] | None:
        """Where the group stands; None while a transaction is about to change that."""
        if any(self._pending[partition] for partition in partitions):
            return None
        return {partition: self.committed[partition] for partition in partitions}

    def pending(self, transaction: Transaction) -> None:
        """A transaction is about to change positions, more of them than before."""
        self._ended_pending(transaction)
        transaction.noted = tuple(transaction.offsets)
        self._pending.update(transaction.noted)

    def ended(self, transaction: Transaction) -> None:
        """It was decided."""
        self._ended_pending(transaction)
        if transaction.committed:
            self.committed.update(transaction.offsets)
        self.decided.notify()

    def _ended_pending(self, transaction: Transaction) -> None:
        self._pending.subtract(transaction.noted)
        transaction.noted = ()

    def _sweep(self) -> None:
        now_us = self._clock.now_us
        self._remove(
            [
                name
                for name, member in self.members.items()
                if now_us - member.heard_us > SESSION_US or 0 <= member.asked_us < now_us - REVOKE_MOST_US
            ]
        )

    def _remove(self, names: list[str]) -> None:
        for name in names:
            del self.members[name]
        if names:
            self._assign()

    def _assign(self) -> None:
        """By range: neighbours to one member."""
        self._epoch += 1
        names = sorted(self.members)
        share, more = divmod(len(self._partitions), max(len(names), 1))
        begin = 0
        for number, name in enumerate(names):
            end = begin + share + (number < more)
            self._targets[name] = set(self._partitions[begin:end])
            begin = end
