"""Whether a worker makes progress (`/healthz`), and whether its loop turns at all (`/livez`).

Pure: every moment is an argument, seconds on one clock.

Rules, the first that holds is told
    standing   its loop has been at the same thing for longer than that may take (`MOST_S`), starting included
    failing    it has failed again and again for `FAILING_S`, and nothing was done between. `CALM_S` without a failure
               count as recovered: an idle worker has nothing that could show it
    sitting    it holds partitions and its client knows of unread records, yet nothing was read for `SITTING_S`
Everything else is well: a worker that has nothing to do is. Only the first rule says that the loop does not turn: who
fails and waits as it should would be no better off for being started anew.
"""

import math
from enum import StrEnum

START_S = 60.0
"""To load a model, find the cluster and begin. The images' health check allows as much."""

FAILING_S = 30.0
"""Longer than a broker takes that is started again, or a take-over."""

CALM_S = 20.0
"""Longer than the longest pause between two failures: a request's 10 s, a wait of 2 s, a client's 5 s."""

SITTING_S = 30.0


class Doing(StrEnum):
    """What a worker's loop is at. A thing of its own has less time than one that waits for Kafka."""

    STARTING = "starting"
    READING = "reading from Kafka"
    """With taking over partitions, which may mean to restore much."""
    WORKING = "working on a batch"
    """With its model."""
    WRITING = "writing to Kafka"
    WAITING = "waiting after a failure"
    IDLE = "waiting until something is due"


MOST_S = {
    Doing.STARTING: START_S,
    Doing.READING: 60.0,
    Doing.WORKING: 15.0,
    Doing.WRITING: 60.0,
    Doing.WAITING: 60.0,
    Doing.IDLE: math.inf,
}
"""The requests of one transaction have time-outs of 30 s in all; a batch takes milliseconds."""


class Progress:
    """What one worker's loop told last. Written by the loop, read by whoever asks: single values, no lock needed."""

    def __init__(self, now_s: float) -> None:
        self.doing = Doing.STARTING
        self.failures = 0
        """In a row."""
        self._since_s = self._progress_s = now_s
        self._failed_first_s = self._failed_last_s = now_s
        self._error = ""
        self._sitting_since_s: float | None = None

    def at(self, now_s: float, doing: Doing) -> None:
        """The loop goes on to this."""
        self.doing, self._since_s = doing, now_s

    def failed(self, now_s: float, error: str) -> None:
        """What the loop did was in vain; it will be tried again."""
        if not self._is_failing(now_s):
            self.failures, self._failed_first_s = 0, now_s
        self.failures += 1
        self._failed_last_s, self._error = now_s, error

    def read(self, now_s: float) -> None:
        """Records were read. A failure may still follow: it ends no row of them."""
        self._progress_s = now_s
        self._sitting_since_s = None

    def done(self, now_s: float) -> None:
        """What was read is done and written."""
        self._progress_s = now_s
        self.failures = 0

    def unread(self, now_s: float, *, some: bool) -> None:
        """Whether the client knows of records that it has not handed out, although the loop asked for them."""
        if not some:
            self._sitting_since_s = None
        elif self._sitting_since_s is None:
            self._sitting_since_s = now_s

    def _is_failing(self, now_s: float) -> bool:
        return self.failures > 0 and now_s - self._failed_last_s <= CALM_S

    def failures_in_a_row(self, now_s: float) -> int:
        """0 where it is well, or has been calm for `CALM_S`."""
        return self.failures if self._is_failing(now_s) else 0

    def idle_s(self, now_s: float) -> float:
        """Seconds since records were read or written."""
        return max(now_s - self._progress_s, 0.0)

    def why_hung(self, now_s: float) -> str:
        """Why its loop counts as hung, in one line; "" while it turns, however little comes of it."""
        doing, stood_s = self.doing, now_s - self._since_s
        return f"its loop has stood still for {stood_s:.0f} s, {doing}" if stood_s > MOST_S[doing] else ""

    def why_not(self, now_s: float) -> str:
        """Why it makes no progress, in one line; "" where it does."""
        hung = self.why_hung(now_s)
        if hung:
            return hung
        failing_s = now_s - self._failed_first_s
        if self._is_failing(now_s) and failing_s > FAILING_S:
            return f"it has failed {self.failures} times in {failing_s:.0f} s: {' '.join(self._error.split())}"
        since_s = self._sitting_since_s
        if since_s is not None and now_s - since_s > SITTING_S:
            return f"records wait, and it has read none for {now_s - since_s:.0f} s"
        return ""
