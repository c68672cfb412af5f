"""One run: its Kafka, its workers and those who start them anew, its input, and its faults."""

from pipelines.errors import TransportError
from pipelines.sim.chance import Generators
from pipelines.sim.checks import Checks, Violation
from pipelines.sim.clock import Clock, Host, Spins, Steps
from pipelines.sim.faults import FAULTS_US, Fault, Schedule
from pipelines.sim.group import Group
from pipelines.sim.kafka import Busy, Kafka, Transaction
from pipelines.sim.stage import StageMaker
from pipelines.sim.worker import Worker
from pipelines.transport.base import Disconnected, Partition

IN = "in"
RESTART_US = 500_000
"""Before a supervisor starts a worker anew that ended by itself."""
ZOMBIE_US = 2_000_000
"""How long a stalled worker that was replaced goes on before it is killed."""
SETTLE_US = 40_000_000
"""Once faults are over, all is answered within this time."""


class World:
    """Everything of one run."""

    def __init__(
        self, schedule: Schedule, generators: Generators, make_stage: StageMaker, worker_type: type[Worker]
    ) -> None:
        self.topology, self._faults, self.generators, self.make_stage = (
            schedule.topology, schedule.faults, generators, make_stage,
        )  # fmt: skip
        self._worker_type = worker_type
        self.clock = Clock()
        self.kafka = Kafka(self.clock, generators(f"{self.topology.seed} brokers"))
        self.partitions: list[Partition] = [(IN, number) for number in range(self.topology.partitions)]
        self.group = Group(self.clock, self.partitions)
        self.poison = frozenset(str(number).encode() for number in self.topology.poison)
        credit, poll = self.topology.credit, self.topology.limits.batch_records
        self.checks = Checks(self.kafka, self.group, lambda: self.clock.now_us, credit.records + 2 * poll, self.poison)
        self.kafka.on_pending, self.kafka.on_ended = self._pending, self._ended
        self.inputs: dict[Partition, list[bytes]] = {partition: [] for partition in self.partitions}
        self._given = 0
        self._incarnations = 0
        self.workers: dict[int, Worker] = {}
        self._last_us = FAULTS_US

    def run(self) -> list[Violation]:
        """Let it happen; what must not have."""
        clock = self.clock
        clock.spawn(Host(), self._give())
        for slot in range(self.topology.workers):
            clock.at(slot * 50_000, lambda slot=slot: self._start(slot))  # type: ignore[misc]
        for fault in self._faults:
            clock.at(fault.at_us, lambda fault=fault: self._happen(fault))  # type: ignore[misc]
            self._last_us = max(self._last_us, fault.at_us + fault.for_us + ZOMBIE_US)
        try:
            clock.run(self._last_us + SETTLE_US, self._is_over)
        except Spins as error:
            self.checks.found("stuck", str(error))
        if not self._all_answered():
            left = self.topology.records - len(self.checks.answered)
            self.checks.found("stuck", f"{left} records have no answer")
        self.checks.final(self.inputs)
        return self.checks.violations

    def ended(self, worker: Worker) -> None:
        """A worker ended: a supervisor starts it anew."""
        if self.workers.get(worker.slot) is worker:
            self.clock.at(self.clock.now_us + RESTART_US, lambda: self._start_anew(worker))

    def _start_anew(self, worker: Worker) -> None:
        if self.workers.get(worker.slot) is worker:
            self._start(worker.slot)

    def _start(self, slot: int) -> None:
        self._incarnations += 1
        self.workers[slot] = self._worker_type(self, slot, self._incarnations)

    def _is_over(self) -> bool:
        return self._all_answered() and self.clock.now_us > self._end_us

    @property
    def _end_us(self) -> int:
        """What is done twice shows within this time."""
        return self._last_us + 1_000_000

    def _all_answered(self) -> bool:
        return len(self.checks.answered) >= self.topology.records == self._given

    def _pending(self, transaction: Transaction, member: str) -> None:
        self.group.pending(transaction)
        self.checks.pending(transaction, member)

    def _ended(self, transaction: Transaction) -> None:
        self.group.ended(transaction)
        self.checks.ended(transaction)

    def _give(self) -> Steps:
        """The input: plain records, and transactions of which some are rolled back."""
        topology = self.topology
        chance = self.generators(f"{topology.seed} input")
        pause_us = 2 * topology.arrive_us // topology.records
        number = 0
        while number < topology.records:
            partition = chance.choice(self.partitions)
            if chance.random() < topology.transactional:
                kept = chance.random() < 0.7
                some = min(chance.randrange(1, 4), topology.records - number)
                values = [str(number + more).encode() if kept else b"never" for more in range(some)]
                yield from self._give_together(partition, values, kept, chance.randrange(1_000, 50_000))
                number += some if kept else 0
            else:
                self._note(partition, str(number).encode())
                self.kafka.append(partition, str(number).encode())
                number += 1
            if chance.random() < 0.5:
                yield chance.randrange(0, 2 * pause_us + 2), None

    def _give_together(self, partition: Partition, values: list[bytes], kept: bool, for_us: int) -> Steps:
        while True:
            try:
                epoch = self.kafka.begin("source")
                break
            except Busy:
                yield 5_000, None
        for value in values:
            if kept:
                self._note(partition, value)
            self.kafka.add("source", epoch, partition, value, None)
        yield for_us, None
        self.kafka.end("source", epoch, committed=kept)

    def _note(self, partition: Partition, value: bytes) -> None:
        self._given += 1
        self.inputs[partition].append(value)

    def _happen(self, fault: Fault) -> None:
        worker = self.workers.get(fault.slot)
        if worker is None or not worker.alive:
            return
        now_us, slot = self.clock.now_us, fault.slot
        match fault.kind:
            case "crash":
                worker.alive = False
                self.clock.at(now_us + fault.for_us, lambda: self._start_anew(worker))
            case "stop":
                worker.stopping = True
            case "stall":
                worker.stalled_until_us = now_us + fault.for_us
            case "replace":
                worker.stalled_until_us = now_us + fault.for_us
                self.clock.at(now_us + fault.for_us // 2, lambda: self._start(slot))
                self.clock.at(now_us + fault.for_us + ZOMBIE_US, lambda: setattr(worker, "alive", False))
            case "slow":
                worker.slow_until_us, worker.slow_factor = now_us + fault.for_us, fault.factor
            case "hang":
                worker.hang_us = fault.for_us
            case "cut":
                worker.link.cut_until_us = now_us + fault.for_us
            case "refuse":
                worker.refusing_until_us = now_us + fault.for_us
            case "lose_reply":
                worker.link.lost_replies = 1
            case "lose_call":
                worker.link.lost_calls = 1
            case "read_error" | "disconnect":
                error = Disconnected if fault.kind == "disconnect" else TransportError
                if worker.fetcher is not None:
                    worker.fetcher.reader.failure = error("as the schedule has it")
