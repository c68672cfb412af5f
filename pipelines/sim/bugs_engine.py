"""Planted bugs of decisions: see `sim/bugs.py`."""

from pipelines.core.batches import Batches
from pipelines.core.engine import Bury, Engine, Event, Fetched, Instruction, Lost, Processed, Revoking, WentBack
from pipelines.sim.worker import Worker
from pipelines.transport.base import Partition, Record


class _EngineKeepsPending(Engine):
    def _forget_all(self) -> None:
        self.batches.clear()
        self._bury = None


class KeepsPending(Worker):
    """After a refusal what was made is kept, and written beside what is made again."""

    engine_type = _EngineKeepsPending


class _EngineKeepsBatches(Engine):
    def _forget_all(self) -> None:
        self._forget_pending()
        self._bury = None


class KeepsRead(Worker):
    """After a refusal what was read is kept, and read again."""

    engine_type = _EngineKeepsBatches


class _EngineHearsEarly(Engine):
    def handle(self, event: Event, now_us: int) -> None:
        if isinstance(event, Fetched):
            self.batches.add(event.records, now_us)
        else:
            super().handle(event, now_us)


class HearsEarly(Worker):
    """What was read before it had gone back counts."""

    engine_type = _EngineHearsEarly


class _EngineReleasesFirst(Engine):
    def next(self, now_us: int) -> Instruction | None:
        if not self._releasing:
            return super().next(now_us)
        records, offsets, self._records, self._offsets = self._records, self._offsets, [], {}
        instruction = super().next(now_us)
        self._records, self._offsets = records, offsets
        return instruction


class ReleasesFirst(Worker):
    """Partitions go before what was made of them is written."""

    engine_type = _EngineReleasesFirst


class _EngineStays(Engine):
    def handle(self, event: Event, now_us: int) -> None:
        super().handle(event, now_us)
        if isinstance(event, Lost) and not self._asked_back:
            self._back_at_us = None


class StaysAfterLoss(Worker):
    """Partitions are lost, all is forgotten, and it reads on where it is."""

    engine_type = _EngineStays


class _EngineDropsPending(Engine):
    def handle(self, event: Event, now_us: int) -> None:
        if isinstance(event, Revoking):
            self._forget_pending()
        super().handle(event, now_us)


class DropsPending(Worker):
    """Partitions are asked back: what was made is dropped, for those that stay too."""

    engine_type = _EngineDropsPending


class _EngineKeepsRevoked(Engine):
    def _drop(self, partitions: set[Partition]) -> None:
        pass


class KeepsRevoked(Worker):
    """What was read of partitions that go is still done."""

    engine_type = _EngineKeepsRevoked


class _EngineBuriesAll(Engine):
    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **options)  # type: ignore[arg-type]
        self._row: list[Record] = []

    def _failed(self, event: Event, now_us: int) -> None:
        doing = list(self.batches.doing)
        self.batches.doing = ()
        self._row = doing
        self._next_burial()

    def _next_burial(self) -> None:
        if self._row:
            self._bury = Bury(self._row.pop(0), RuntimeError("a batch failed"))

    def _processed(self, event: Processed, now_us: int) -> None:
        super()._processed(event, now_us)
        if self._bury is None:
            self._next_burial()

    def _forget_all(self) -> None:
        super()._forget_all()
        self._row = []


class BuriesBatch(Worker):
    """One item fails, and its whole batch is buried."""

    engine_type = _EngineBuriesAll


class _SkippingBatches(Batches):
    def failed(self) -> Record | None:
        found = super().failed()
        if found is None and len(self._suspects) >= 2:
            del self._suspects[-2]
        return found


class _EngineSkipsTail(Engine):
    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **options)  # type: ignore[arg-type]
        self.batches = _SkippingBatches(self.batches._limits)


class SkipsTail(Worker):
    """A batch fails, and of its halves one is forgotten."""

    engine_type = _EngineSkipsTail


class _SwappingBatches(Batches):
    def failed(self) -> Record | None:
        found = super().failed()
        if found is None and len(self._suspects) >= 2:
            self._suspects[-2:] = reversed(self._suspects[-2:])
        return found


class _EngineSwaps(Engine):
    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **options)  # type: ignore[arg-type]
        self.batches = _SwappingBatches(self.batches._limits)


class SwapsHalves(Worker):
    """A batch fails, and its second half is done before its first."""

    engine_type = _EngineSwaps


class _EngineNeverGoesBack(Engine):
    def handle(self, event: Event, now_us: int) -> None:
        if not isinstance(event, WentBack):
            super().handle(event, now_us)


class NeverGoesOn(Worker):
    """It does not take note that it has gone back."""

    engine_type = _EngineNeverGoesBack
