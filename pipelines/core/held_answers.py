"""The cloud's answers that were read and are not used up: the commit offset of their partition stays behind them.

An answer is held by its record, which has items without an answer yet, or it is early: its record was not read yet.
Early answers have two limits. Beyond `limit` of them a new one is dropped (those held are for the records that come
next), and one whose record has not come within `hold_us` is dropped: else a single answer that belongs to nothing would
hold the commit offset until the log's retention reached it. The caller counts what is dropped; their items settle
without the cloud.
"""

from collections import OrderedDict
from collections.abc import Callable

import msgspec

from schemas.answers import Answer

Place = tuple[int, int]
"""Priority and offset of a record in the uplink topics of one partition number."""


class Held(msgspec.Struct, frozen=True):
    """An answer, and the offset of the record that it came in."""

    answer: Answer
    offset: int


class _Early(msgspec.Struct):
    expires_us: int
    answers: list[Held]


class HeldAnswers:
    """Answers read from one partition and not used up. Every operation is O(1) an answer."""

    def __init__(self, next_offset: int, limit: int, hold_us: int) -> None:
        self.next_offset = next_offset
        """The first answers record not read yet."""
        self.early_count = 0
        self._limit = limit
        self._hold_us = hold_us
        self._uses: OrderedDict[int, int] = OrderedDict()  # Answers in use by their record's offset, oldest first.
        self._early: OrderedDict[Place, _Early] = OrderedDict()  # The first to expire first.

    @property
    def commit_offset(self) -> int:
        """The oldest answers record of which an answer is in use, else the next one."""
        return next(iter(self._uses), self.next_offset)

    def use(self, held: Held) -> None:
        """`held` must be read again after a crash."""
        self._uses[held.offset] = self._uses.get(held.offset, 0) + 1

    def release(self, held: Held) -> None:
        """`held`, in use until now, need not be read again."""
        left = self._uses[held.offset] - 1
        if left:
            self._uses[held.offset] = left
        else:
            del self._uses[held.offset]

    def hold(self, place: Place, held: Held, now_us: int) -> bool:
        """Hold an answer in use until its record comes. False, and it is released, where the limit is reached."""
        if self.early_count >= self._limit:
            self.release(held)
            return False
        self.keep(place, held, now_us)
        return True

    def keep(self, place: Place, held: Held, now_us: int) -> None:
        """As `hold`, whatever the limit: for answers that their record, gone for now, had already."""
        self.early_count += 1
        early = self._early.get(place)
        if early is None:
            self._early[place] = _Early(now_us + self._hold_us, [held])
        else:
            early.answers.append(held)

    def take(self, place: Place) -> list[Held]:
        """The answers, still in use, that were early for the record at `place`, in order."""
        early = self._early.pop(place, None)
        if early is None:
            return []
        self.early_count -= len(early.answers)
        return early.answers

    def expire(self, now_us: int, is_waiting: Callable[[Place], bool]) -> int:
        """Drop early answers held too long, but for those whose record is known to wait. Returns how many."""
        dropped = 0
        while self._early:
            place, early = next(iter(self._early.items()))
            if early.expires_us > now_us:
                break
            if is_waiting(place):
                early.expires_us = now_us + self._hold_us
                self._early.move_to_end(place)
                continue
            for held in self.take(place):
                self.release(held)
                dropped += 1
        return dropped
