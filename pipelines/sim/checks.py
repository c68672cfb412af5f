"""What must hold, whatever happens.

Checked while it runs: nothing is committed for a partition that is another member's (`one_writer`); no position passes
a record without an answer, and none goes back (`position`); what a worker holds is bounded (`memory`). At the end:
every record is answered or buried exactly once (`lost`, `doubled`), in order (`order`), the stage's own count went on
where it stood (`count`), and what is poison, nothing else, is buried (`buried`). `stuck`: it does not come to its end.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from pipelines.core.engine import Fetched
from pipelines.sim.group import Group
from pipelines.sim.kafka import Kafka, Transaction
from pipelines.sim.stage import DEAD, OUT
from pipelines.transport.base import Partition

if TYPE_CHECKING:
    from pipelines.sim.worker import Worker

VIOLATIONS_MOST = 20
"""Told of one run."""


class Violation(msgspec.Struct, frozen=True):
    """Something that must not be."""

    kind: str
    at_us: int
    what: str


class Checks:
    """Of one run."""

    def __init__(
        self, kafka: Kafka, group: Group, now_us: Callable[[], int], held_most: int, poison: frozenset[bytes]
    ) -> None:
        self._kafka, self._group, self._now, self._held_most, self._poison = kafka, group, now_us, held_most, poison
        self.violations: list[Violation] = []
        self.answered: set[bytes] = set()
        self._passed: dict[Partition, int] = {}

    def found(self, kind: str, what: str) -> None:
        """Note it."""
        if len(self.violations) < VIOLATIONS_MOST:
            self.violations.append(Violation(kind, self._now(), what))

    def pending(self, transaction: Transaction, member: str) -> None:
        """A member, whose epoch was right, commits."""
        for partition in transaction.offsets:
            owner = self._group.owner(partition)
            if owner is not None and owner != member:
                self.found("one_writer", f"{member} commits {_named(partition)}, which is {owner}'s")

    def ended(self, transaction: Transaction) -> None:
        """All of it can be read now, or nothing."""
        if not transaction.committed:
            return
        for partition, first in transaction.firsts.items():
            if partition[0] in (OUT, DEAD):
                for entry in self._kafka.log(partition).entries[first:]:
                    if entry.transaction is transaction and entry.value is not None:
                        self.answered.add(entry.value)
        for partition, commit in transaction.offsets.items():
            passed = self._passed.get(partition, 0)
            if commit.offset < passed:
                self.found("position", f"{_named(partition)} goes back from {passed} to {commit.offset}")
            for offset, entry in self._kafka.log(partition).visible(passed, 1 << 30):
                if offset >= commit.offset:
                    break
                if entry.value not in self.answered:
                    self.found("position", f"{_named(partition)} is at {commit.offset}, {offset} has no answer")
            self._passed[partition] = max(passed, commit.offset)

    def held(self, worker: "Worker") -> None:
        """What a worker has read and not done."""
        fetcher = worker.fetcher
        waiting = sum(len(one.records) for one in fetcher.inbox if isinstance(one, Fetched)) if fetcher else 0
        held = waiting + len(worker.engine.batches) + len(worker.engine.batches.doing)
        if held > self._held_most:
            self.found("memory", f"{worker.name} holds {held} records, {self._held_most} at the most")

    def final(self, inputs: dict[Partition, list[bytes]]) -> None:
        """All is over."""
        for (topic, number), values in inputs.items():
            logs = {kind: self._kafka.log((kind, number)) for kind in (OUT, DEAD)}
            found = {kind: [entry for _, entry in log.visible(0, 1 << 30)] for kind, log in logs.items()}
            place = {value: at for at, value in enumerate(values)}
            seen: dict[bytes, int] = {}
            for kind, entries in found.items():
                last = -1
                for entry in entries:
                    value = entry.value or b""
                    seen[value] = seen.get(value, 0) + 1
                    if value not in place:
                        self.found("doubled", f"{value!r} was never given")
                        continue
                    if place[value] < last:
                        self.found("order", f"{kind}[{number}]: {value!r} comes late")
                    last = max(last, place[value])
                    if entry.key != str(place[value] + 1).encode():
                        self.found("count", f"{kind}[{number}]: {value!r} was counted as {entry.key!r}")
                    if (kind == DEAD) != (value in self._poison):
                        self.found("buried", f"{value!r} is in {kind}")
            for value in values:
                if seen.get(value, 0) != 1:
                    self.found("doubled" if value in seen else "lost", f"{topic}[{number}]: {value!r}")


def _named(partition: Partition) -> str:
    return f"{partition[0]}[{partition[1]}]"
