"""What a worker's loop is handed: the clock, its progress and its meters.

Everything is cheap enough for a batch (a few microseconds), and works whether or not anybody listens.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version

from prometheus_client import CollectorRegistry

from pipelines.core.progress import Doing, Progress
from pipelines.observe.meters import Meters
from pipelines.observe.metrics import BUILD_INFO, FAILURES, HEALTHY, SINCE_PROGRESS


class Instruments:
    """Of one worker process."""

    def __init__(self, kind: str = "", site: str = "", clock_s: Callable[[], float] = time.monotonic) -> None:
        """`kind` of worker; without one every metric is there, for a worker that nobody looks at."""
        self.meters = Meters(kind, site)
        self._clock_s = clock_s
        self._progress = Progress(clock_s())
        with suppress(PackageNotFoundError):
            self.meters.set(BUILD_INFO, 1, version("tidegate"))

    def at(self, doing: Doing) -> None:
        """The loop goes on to this."""
        self._progress.at(self._clock_s(), doing)

    def read(self) -> None:
        """Records were read."""
        self._progress.read(self._clock_s())

    def done(self) -> None:
        """What was read is done and written."""
        self._progress.done(self._clock_s())

    def failed(self, error: object) -> None:
        """What the loop did was in vain; it waits and tries again."""
        now_s = self._clock_s()
        self._progress.at(now_s, Doing.WAITING)
        self._progress.failed(now_s, str(error))

    def unread(self, *, some: bool) -> None:
        """Whether the client knows of records that it does not hand out."""
        self._progress.unread(self._clock_s(), some=some)

    def why_not(self) -> str:
        """Why the worker makes no progress; "" where it does."""
        return self._progress.why_not(self._clock_s())

    def why_hung(self) -> str:
        """Why the worker's loop counts as hung; "" while it turns."""
        return self._progress.why_hung(self._clock_s())

    def exposed(self) -> CollectorRegistry:
        """All metrics, those brought up to date that are only known when they are asked for."""
        now_s = self._clock_s()
        self.meters.set(HEALTHY, not self._progress.why_not(now_s))
        self.meters.set(FAILURES, self._progress.failures_in_a_row(now_s))
        self.meters.set(SINCE_PROGRESS, self._progress.idle_s(now_s))
        return self.meters.registry

    @property
    def doing(self) -> Doing:
        """What the loop is at."""
        return self._progress.doing
