"""Runs by their seeds, and what is left of a failing one when all is taken away that does not matter."""

import msgspec

from pipelines.sim.chance import Generators
from pipelines.sim.checks import Violation
from pipelines.sim.faults import Schedule, draw
from pipelines.sim.stage import Counting, StageMaker
from pipelines.sim.worker import Worker
from pipelines.sim.world import World


class Failure(msgspec.Struct, frozen=True):
    """A seed whose run violates something."""

    seed: int
    violations: list[Violation]
    schedule: Schedule
    """Shrunk: with any one fault less it holds."""


def simulate(
    schedule: Schedule,
    generators: Generators,
    make_stage: StageMaker = Counting,
    worker_type: type[Worker] = Worker,
) -> list[Violation]:
    """Run a schedule; what must not have been."""
    return World(schedule, generators, make_stage, worker_type).run()


def try_seed(
    seed: int,
    generators: Generators,
    make_stage: StageMaker = Counting,
    worker_type: type[Worker] = Worker,
    *,
    shrinks: bool = True,
) -> Failure | None:
    """The failure of a seed, None where all holds."""

    def violations(schedule: Schedule) -> list[Violation]:
        return simulate(schedule, generators, make_stage, worker_type)

    schedule = draw(seed, generators(str(seed)))
    found = violations(schedule)
    if not found:
        return None
    left = True
    while shrinks and left:
        left = False
        for fault in schedule.faults:
            fewer = msgspec.structs.replace(schedule, faults=tuple(one for one in schedule.faults if one is not fault))
            if now := violations(fewer):
                schedule, found, left = fewer, now, True
    return Failure(seed, found, schedule)
