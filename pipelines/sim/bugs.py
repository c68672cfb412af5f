"""Planted bugs: workers that do one thing wrong, to show that the search finds such things (`--bug NAME`).

Each is what somebody could write by mistake. `tests/simulation` holds the first seed that finds each.
"""

from collections.abc import Generator, Mapping, Sequence

from pipelines.core.batches import Batches
from pipelines.core.engine import (
    Bury,
    Engine,
    Event,
    Fetched,
    GoBack,
    Instruction,
    Lost,
    Processed,
    Refused,
    Revoking,
    WentBack,
    Write,
    Written,
)
from pipelines.sim.clock import Wait
from pipelines.sim.fetcher import Fetcher
from pipelines.sim.worker import Worker
from pipelines.transport.base import Aborted, Commit, Partition, Record


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


class CommitsEarly(Worker):
    """The position passes records that wait: the last one read is taken for done."""

    def _write_as_member(self, instruction: Write) -> Generator[Wait, None, None]:
        read = {one: Commit(offset) for one, offset in self._poll.reader.positions.items()}
        early = {
            one: Commit(read.get(one, commit).offset, commit.metadata) for one, commit in instruction.offsets.items()
        }
        yield from super()._write_as_member(Write(instruction.records, early, instruction.size_bytes))


class _FetcherReadsUnstable(Fetcher):
    def _rewind(self, number: int) -> Generator[Wait, None, None]:
        yield 1_000, None
        commits = {one: self.reader._group.committed[one] for one in self.reader.positions}
        self.reader.positions.update({one: commit.offset for one, commit in commits.items()})
        self._went_back(commits, number)


class GoesBackUnfenced(Worker):
    """It goes back to positions that a transaction may yet change, and only then has the coordinator end that."""

    fetcher_type = _FetcherReadsUnstable

    def _go_back(self, instruction: GoBack) -> Generator[Wait, None, Event | None]:
        self._poll.go_back(instruction.number, rejoin=instruction.rejoin)
        yield 800_000, None
        return (yield from self._guarded(self.writer.start()))


class WritesUnheard(Worker):
    """It writes while a loss lies in its inbox. (This was one of ours, and the search found it.)"""

    def _write_as_member(self, instruction: Write) -> Generator[Wait, None, None]:
        yield from self.writer.write(instruction.records, instruction.offsets, self._poll.reader)


class IgnoresEpoch(Worker):
    """A commit that is refused because its epoch is old is made again, with today's."""

    def _write_as_member(self, instruction: Write) -> Generator[Wait, None, None]:
        reader = self._poll.reader
        member = self.world.group.members.get(reader.name)
        reader.membership = (reader.name, member.epoch if member else -1)
        yield from self.writer.write(instruction.records, instruction.offsets, reader)


class TakesUnknownForDone(Worker):
    """A commit of which it hears nothing is taken for done."""

    def _write(self, instruction: Write) -> Generator[Wait, None, Event]:
        event = yield from super()._write(instruction)
        if isinstance(event, Refused) and isinstance(event.error, Aborted) and "no answer" in str(event.error):
            yield from self._guarded(self.writer.start())
            return Written()
        return event


class _FetcherStays(Fetcher):
    def _rewind(self, number: int) -> Generator[Wait, None, None]:
        yield 1_000, None
        commits = {one: self.reader._group.committed[one] for one in self.reader.positions}
        self._went_back(commits, number)


class ResumesAtPosition(Worker):
    """It goes back without a seek, and reads on where its client is."""

    fetcher_type = _FetcherStays


class _FetcherLetsGo(Fetcher):
    def revoked(self, partitions: Sequence[Partition]) -> Generator[Wait, None, None]:
        self._held.difference_update(partitions)
        self._put(Revoking(partitions))
        yield 1, None


class LetsGoAtOnce(Worker):
    """Partitions that are asked back go without the worker's word."""

    fetcher_type = _FetcherLetsGo


class RestoresNothing(Worker):
    """Having gone back, the stage is not told where it stands."""

    def _restore(self, commits: Mapping[Partition, Commit]) -> None:
        self.stage.assigned({one: commit for one, commit in commits.items() if one not in self._restored})
        self._restored |= set(commits)

    def __init__(self, *args: object) -> None:
        self._restored: set[Partition] = set()
        super().__init__(*args)  # type: ignore[arg-type]


class _EngineNeverGoesBack(Engine):
    def handle(self, event: Event, now_us: int) -> None:
        if not isinstance(event, WentBack):
            super().handle(event, now_us)


class NeverGoesOn(Worker):
    """It does not take note that it has gone back."""

    engine_type = _EngineNeverGoesBack


BUGS: dict[str, type[Worker]] = {
    "keeps-pending": KeepsPending,
    "keeps-read": KeepsRead,
    "hears-early": HearsEarly,
    "releases-first": ReleasesFirst,
    "stays-after-loss": StaysAfterLoss,
    "drops-pending": DropsPending,
    "keeps-revoked": KeepsRevoked,
    "buries-batch": BuriesBatch,
    "skips-tail": SkipsTail,
    "swaps-halves": SwapsHalves,
    "commits-early": CommitsEarly,
    "goes-back-unfenced": GoesBackUnfenced,
    "writes-unheard": WritesUnheard,
    "ignores-epoch": IgnoresEpoch,
    "takes-unknown-for-done": TakesUnknownForDone,
    "resumes-at-position": ResumesAtPosition,
    "lets-go-at-once": LetsGoAtOnce,
    "restores-nothing": RestoresNothing,
    "never-goes-on": NeverGoesOn,
}
"""By name."""
