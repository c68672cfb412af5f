"""What a simulated worker runs: a stage in virtual time, and the one whose outputs can be checked.

A stage of yours has the methods of `SimStage`; hand a maker of it to `simulate` (docs/simulation.md).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from pipelines.core.engine import Processed
from pipelines.transport.base import Commit, OutRecord, Partition, Record

OUT, DEAD = "out", "dead"


class Poison(Exception):
    """An item on which the stage always fails."""


class SimStage(Protocol):
    """As `runtime.stage.Stage` and `Burying`; time is virtual, and what it takes is the simulation's to say."""

    def assigned(self, partitions: Mapping[Partition, Commit]) -> None:
        """These are read from these commits on."""
        ...

    def revoked(self, partitions: Sequence[Partition]) -> None:
        """These are gone."""
        ...

    def process(self, records: Sequence[Record], now_us: int) -> Processed:
        """Make something of a batch."""
        ...

    def bury(self, record: Record, reason: str, now_us: int) -> Processed:
        """Make of a record what is left to be made of it."""
        ...

    def tick(self, now_us: int) -> Processed:
        """What is due by the clock."""
        ...


StageMaker = Callable[[frozenset[bytes]], SimStage]
"""Makes a worker's stage, given the values on which it is to fail."""


class Counting:
    """Answers each record with its value and its number in the partition. The count is kept in commits alone."""

    def __init__(self, poison: frozenset[bytes]) -> None:
        self._poison = poison
        self._counts: dict[Partition, int] = {}

    def assigned(self, partitions: Mapping[Partition, Commit]) -> None:
        """Restore the counts."""
        self._counts.update({one: int(commit.metadata or 0) for one, commit in partitions.items()})

    def revoked(self, partitions: Sequence[Partition]) -> None:
        """Forget the counts."""
        for partition in partitions:
            self._counts.pop(partition, None)

    def process(self, records: Sequence[Record], now_us: int) -> Processed:
        """An answer each. Raises `Poison`, having counted nothing."""
        if any(record.value() in self._poison for record in records):
            raise Poison
        return self._answers(records, OUT)

    def bury(self, record: Record, reason: str, now_us: int) -> Processed:
        """A dead letter."""
        return self._answers([record], DEAD)

    def tick(self, now_us: int) -> Processed:
        """Nothing is due."""
        return Processed()

    def _answers(self, records: Sequence[Record], topic: str) -> Processed:
        answers: list[OutRecord] = []
        offsets: dict[Partition, Commit] = {}
        for record in records:
            partition = (record.topic(), record.partition())
            count = self._counts.get(partition, 0) + 1
            self._counts[partition] = count
            answers.append(OutRecord(topic, record.value(), str(count).encode(), partition[1]))
            offsets[partition] = Commit(record.offset() + 1, str(count))
        return Processed(answers, offsets, sum(answer.size_bytes for answer in answers))
