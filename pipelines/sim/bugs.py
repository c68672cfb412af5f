"""Planted bugs: workers that do one thing wrong, to show that the search finds such things (`--bug NAME`).

Each is what somebody could write by mistake. `tests/simulation` holds the first seed that finds each.
"""

from collections.abc import Generator, Mapping, Sequence

from pipelines.core.engine import Event, GoBack, Refused, Revoking, Write, Written
from pipelines.sim.bugs_engine import (
    BuriesBatch,
    DropsPending,
    HearsEarly,
    KeepsPending,
    KeepsRead,
    KeepsRevoked,
    NeverGoesOn,
    ReleasesFirst,
    SkipsTail,
    StaysAfterLoss,
    SwapsHalves,
)
from pipelines.sim.clock import Wait
from pipelines.sim.fetcher import Fetcher
from pipelines.sim.worker import Worker
from pipelines.transport.base import Aborted, Commit, Partition


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
