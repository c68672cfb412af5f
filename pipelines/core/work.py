"""What a worker says of itself in the metadata of its commits: its name, and what a record costs it.

It is written in the same transaction as the offsets, so whoever asks where a group stands learns for nothing who works
on each partition and how much more it could do. Format: `w1 NAME RECORD_US COMMIT_US CAPACITY_PER_S`.
"""

from math import exp

import msgspec

FADING_S = 5.0


class WorkNote(msgspec.Struct, frozen=True):
    """One worker's figures, means over the last seconds."""

    worker: str
    record_us: float
    """Processing time of a record, the model included. In small batches a record costs more."""
    commit_us: float
    """Of one transaction."""
    capacity_per_s: float
    """Records a second that this worker could do: see `capacity_per_s`."""

    def __str__(self) -> str:
        return f"w1 {self.worker} {self.record_us:.1f} {self.commit_us:.0f} {self.capacity_per_s:.1f}"

    @classmethod
    def read(cls, metadata: str) -> "WorkNote | None":
        """The note in a commit's metadata, None where there is none."""
        parts = metadata.split(" ")
        if len(parts) != 5 or parts[0] != "w1":
            return None
        try:
            return cls(parts[1], float(parts[2]), float(parts[3]), float(parts[4]))
        except ValueError:
            return None


def capacity_per_s(record_us: float, commit_us: float, commit_interval_us: float) -> float:
    """Records a second of a worker that is never idle: it works for one interval, then commits."""
    if record_us <= 0:
        return 0.0
    working = commit_interval_us / (commit_interval_us + commit_us) if commit_interval_us > 0 else 1.0
    return working * 1e6 / record_us


class Mean:
    """Cost over amount, both fading: what was `FADING_S` ago counts a third of what is now."""

    __slots__ = ("_amount", "_at_s", "_cost")

    def __init__(self) -> None:
        self._cost = self._amount = self._at_s = 0.0

    def add(self, at_s: float, amount: float, cost: float) -> None:
        """So much of it cost so much."""
        left = exp(min(self._at_s - at_s, 0.0) / FADING_S)
        self._cost, self._amount, self._at_s = self._cost * left + cost, self._amount * left + amount, at_s

    @property
    def value(self) -> float:
        """Cost of one; 0 while nothing is known."""
        return self._cost / self._amount if self._amount > 0 else 0.0


class WorkMeans:
    """One worker's means, as its batches and commits come. What is idle keeps its last ones."""

    def __init__(self) -> None:
        self._record, self._commit = Mean(), Mean()

    def batch(self, at_s: float, records: int, took_us: float) -> None:
        """A batch of so many records took so long."""
        self._record.add(at_s, records, took_us)

    def commit(self, at_s: float, took_us: float) -> None:
        """A transaction took so long."""
        self._commit.add(at_s, 1, took_us)

    def note(self, worker: str, commit_interval_us: float) -> WorkNote:
        """What the worker says of itself."""
        record_us, commit_us = self._record.value, self._commit.value
        return WorkNote(worker, record_us, commit_us, capacity_per_s(record_us, commit_us, commit_interval_us))
