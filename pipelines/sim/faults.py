"""What a run is made of, and what goes wrong in it: data, drawn from one seed, to be printed and shrunk."""

from typing import Literal

import msgspec

from pipelines.core.credit import CreditLimits
from pipelines.core.engine import EngineLimits
from pipelines.sim.chance import Chance

Kind = Literal[
    "crash", "stop", "stall", "replace", "slow", "hang", "cut", "refuse", "lose_reply", "lose_call", "read_error",
    "disconnect",
]  # fmt: skip
"""crash: gone at once, started anew after `for_us`. stop: asked to end, started anew. stall: nothing of it runs for so
long (SIGSTOP). replace: stalled, another is started under its name meanwhile, and the old one goes on for a while as a
zombie. slow: its model takes `factor` times as long. hang: one call of its stage takes so much longer. cut: its
network. refuse: its stage's own cluster is away. lose_reply: the next commit is done, and it never hears. lose_call:
the next commit arrives when it is no longer waited for. read_error, disconnect: its reader fails."""

KINDS: tuple[Kind, ...] = Kind.__args__  # type: ignore[attr-defined]

FAULTS_US = 12_000_000
"""No fault begins later."""


class Fault(msgspec.Struct, frozen=True, omit_defaults=True):
    """One thing that goes wrong with the worker in a slot."""

    at_us: int
    kind: Kind
    slot: int
    for_us: int = 0
    factor: int = 1


class Topology(msgspec.Struct, frozen=True):
    """What a run begins with."""

    seed: int
    partitions: int
    workers: int
    records: int
    """In all."""
    arrive_us: int
    """Within this time."""
    poison: frozenset[int]
    """Numbers of records on which every stage fails."""
    transactional: float
    """Share of records that come in transactions: those leave markers, and what was rolled back."""
    record_us: int
    """What a record costs the model."""
    limits: EngineLimits
    credit: CreditLimits


class Schedule(msgspec.Struct, frozen=True):
    """A whole run."""

    topology: Topology
    faults: tuple[Fault, ...]


def draw(seed: int, chance: Chance) -> Schedule:
    """The schedule of a seed."""
    records = chance.randrange(80, 400)
    workers = chance.randrange(1, 5)
    batch = chance.choice([4, 16, 40])
    topology = Topology(
        seed=seed,
        partitions=chance.randrange(1, 6),
        workers=workers,
        records=records,
        arrive_us=chance.randrange(100_000, FAULTS_US),
        poison=frozenset(chance.randrange(0, records) for _ in range(chance.randrange(0, 5))),
        transactional=chance.choice([0.0, 0.1, 0.3]),
        record_us=chance.choice([100, 2_000, 20_000]),
        limits=EngineLimits(
            batch_records=batch,
            batch_budget_us=100_000,
            linger_us=chance.choice([0, 0, 20_000]),
            commit_interval_us=chance.choice([20_000, 50_000, 200_000]),
            pending_records=chance.choice([20, 200]),
            tick_us=250_000,
            retry_most_us=1_000_000,
        ),
        credit=CreditLimits(ahead_records=2 * batch, records=chance.choice([4, 8]) * batch),
    )
    faults = (_fault(workers, chance) for _ in range(chance.randrange(8, 31)))
    return Schedule(topology, tuple(sorted(faults, key=lambda fault: fault.at_us)))


def _fault(workers: int, chance: Chance) -> Fault:
    kind = chance.choice(KINDS)
    short_us, long_us = chance.randrange(10_000, 800_000), chance.randrange(800_000, 8_000_000)
    return Fault(
        at_us=chance.randrange(0, FAULTS_US),
        kind=kind,
        slot=chance.randrange(0, workers),
        for_us=long_us if kind in ("replace", "hang") or chance.random() < 0.3 else short_us,
        factor=chance.choice([3, 10, 20]) if kind == "slow" else 1,
    )
