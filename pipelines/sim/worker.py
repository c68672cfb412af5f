"""A worker in virtual time: `runtime/stage.py`, line by line, over the same `Engine`."""

from collections.abc import Callable, Generator, Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec

from pipelines.core.engine import (
    Bury,
    End,
    Engine,
    Event,
    Failed,
    GoBack,
    Instruction,
    Lost,
    Process,
    Processed,
    Refused,
    Release,
    Stop,
    Tick,
    WentBack,
    Write,
    Written,
)
from pipelines.errors import Fenced, TidegateError, TransportError
from pipelines.sim.clock import Host, Spins, Steps, Wait
from pipelines.sim.fetcher import Fetcher, Heard
from pipelines.sim.heard import Assigned, Rewound
from pipelines.sim.link import Link
from pipelines.sim.reader import Reader
from pipelines.sim.writer import Writer
from pipelines.transport.base import Aborted, Commit, Partition, Record

if TYPE_CHECKING:
    from pipelines.sim.world import World

WAIT_MOST_US = 100_000
TURN_US = 20
"""Of the worker's own, for an instruction."""


class Worker(Host):
    """One process: a poll thread and a work thread."""

    engine_type: type[Engine] = Engine
    fetcher_type: type[Fetcher] = Fetcher

    def __init__(self, world: "World", slot: int, incarnation: int) -> None:
        super().__init__()
        topology = world.topology
        self.world, self.clock, self.slot = world, world.clock, slot
        self.name = f"worker-{slot}.{incarnation}"
        self.link = Link(world.clock, world.generators(f"{topology.seed} link {self.name}"))
        self.stopping = False
        self.slow_until_us = self.refusing_until_us = self.hang_us = 0
        self.slow_factor = 1
        self._members = self._losses = 0
        self.stage = world.make_stage(world.poison)
        self.engine = self.engine_type(topology.limits, isolates=True)
        self.writer = Writer(world.kafka, world.group, self.link, f"worker-{slot}")
        self.fetcher: Fetcher | None = None
        self._held: set[Partition] = set()
        world.clock.spawn(self, self._run())

    def _join(self, fetcher: Fetcher) -> Reader:
        self._members += 1
        world = self.world
        return Reader(world.kafka, world.group, self.link, self, fetcher, f"{self.name}.{self._members}")

    def _run(self) -> Steps:
        try:
            yield from self.writer.start()
        except TransportError:
            self._ends()
            return
        topology = self.world.topology
        self.fetcher = self.fetcher_type(self.clock, self._join, topology.limits.batch_records, topology.credit)
        self.clock.spawn(self, self.fetcher.run())
        while (yield from self._turn()) is None:
            pass
        self._release(sorted(self._held))
        self.fetcher.close()
        self._ends()

    def _ends(self) -> None:
        self.alive = False
        self.world.ended(self)

    @property
    def _poll(self) -> Fetcher:
        assert self.fetcher is not None
        return self.fetcher

    def _turn(self) -> Generator[Wait, None, End | None]:
        engine = self.engine
        if self.stopping:
            engine.handle(Stop(), self.clock.now_us)
        wait_us = engine.due_us() - self.clock.now_us
        yield from self._hear_all(wait_us)
        instruction = engine.next(self.clock.now_us)
        if isinstance(instruction, End):
            return instruction
        if instruction is not None:
            yield from self._carry_out(instruction)
        elif wait_us <= 0:
            yield TURN_US, None  # What is due at once and then is not: such a worker goes round and round.
        return None

    def _hear_all(self, wait_us: int) -> Generator[Wait, None, None]:
        inbox = self._poll.inbox
        if not inbox and wait_us > 0:
            yield min(wait_us, WAIT_MOST_US), self._poll.heard
        self.world.checks.held(self)
        while inbox:
            yield from self._hear(inbox.popleft())

    def _hear(self, heard: Heard) -> Generator[Wait, None, None]:
        if isinstance(heard, Assigned):
            self._held.update(heard.commits)
            self._restore(heard.commits)
        elif isinstance(heard, Rewound):
            self._restore(heard.commits)
            self.engine.handle(WentBack(heard.number), self.clock.now_us)
        else:
            self._losses += isinstance(heard, Lost)
            self.engine.handle(heard, self.clock.now_us)
            turns = 0
            while self.engine.is_releasing and (instruction := self.engine.next(self.clock.now_us)) is not None:
                yield from self._carry_out(instruction)
                turns += 1
                if turns > 1_000:
                    raise Spins(f"{self.name} goes round while partitions wait to go")

    def _restore(self, commits: Mapping[Partition, Commit]) -> None:
        self.stage.assigned(commits)

    def _carry_out(self, instruction: Instruction) -> Generator[Wait, None, None]:
        yield TURN_US, None
        match instruction:
            case Process():
                event = yield from self._process(instruction.records)
            case Tick():
                event = yield from self._make(0, lambda: self.stage.tick(self.clock.now_us))
            case Bury():
                event = yield from self._bury(instruction)
            case Write():
                event = yield from self._write(instruction)
            case Release():
                self._release(instruction.partitions)
                return
            case GoBack():
                event_or_none = yield from self._go_back(instruction)
                if event_or_none is None:
                    return
                event = event_or_none
            case End():
                return
        self.engine.handle(event, self.clock.now_us)

    def _go_back(self, instruction: GoBack) -> Generator[Wait, None, Event | None]:
        refused = yield from self._guarded(self.writer.start())
        if refused is None:
            self._poll.go_back(instruction.number, rejoin=instruction.rejoin)
        return refused

    def _process(self, records: Sequence[Record]) -> Generator[Wait, None, Event]:
        began_us = self.clock.now_us
        event = yield from self._make(len(records), lambda: self.stage.process(records, self.clock.now_us))
        if isinstance(event, Processed):
            self._poll.done(len(records))
            return msgspec.structs.replace(event, took_us=self.clock.now_us - began_us)
        return event

    def _bury(self, instruction: Bury) -> Generator[Wait, None, Event]:
        event = yield from self._make(1, lambda: self.stage.bury(instruction.record, "failed", self.clock.now_us))
        if isinstance(event, Processed):
            self._poll.done(1)
            return event
        return Refused(event.error) if isinstance(event, Failed) else event

    def _make(self, records: int, call: Callable[[], Processed]) -> Generator[Wait, None, Event]:
        made: list[Processed] = []
        refused = yield from self._guarded(self._take_time(records, lambda: made.append(call())))
        return refused or made[0]

    def _take_time(self, records: int, call: Callable[[], None]) -> Generator[Wait, None, None]:
        """The model runs, with what faults make of it."""
        took_us = records * self.world.topology.record_us
        if self.clock.now_us < self.slow_until_us:
            took_us *= self.slow_factor
        hang_us, self.hang_us = self.hang_us, 0
        yield took_us + hang_us, None
        if self.clock.now_us < self.refusing_until_us and records:
            raise TransportError("the stage's own cluster is away")
        call()

    def _guarded(self, steps: Generator[Wait, None, None]) -> Generator[Wait, None, Failed | Refused | None]:
        try:
            yield from steps
        except (TransportError, Fenced) as error:
            return Refused(error)
        except TidegateError as error:
            return Refused(error, final=True)
        except Spins:
            raise
        except Exception as error:  # noqa: BLE001 - the stage of somebody else may raise anything; the engine decides
            return Failed(error)
        return None

    def _write(self, instruction: Write) -> Generator[Wait, None, Event]:
        refused = yield from self._guarded(self._write_as_member(instruction))
        return Written() if refused is None else Refused(refused.error, final=isinstance(refused, Failed))

    def _write_as_member(self, instruction: Write) -> Generator[Wait, None, None]:
        if self._poll.losses != self._losses:
            raise Aborted("partitions were lost meanwhile")
        yield from self.writer.write(instruction.records, instruction.offsets, self._poll.reader)

    def _release(self, partitions: Sequence[Partition]) -> None:
        self._held.difference_update(partitions)
        self.stage.revoked(partitions)
        self._poll.release(partitions)
