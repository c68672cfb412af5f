"""Wall and CPU time of one run in its own process. Standard library only, so that any environment can use it."""

import time


class Clock:
    """From the first record taken to the last commit."""

    def __init__(self) -> None:
        self._begun: tuple[float, float] | None = None
        self._ended = (0.0, 0.0)

    def begin(self) -> None:
        """Records were read; the first time counts."""
        if self._begun is None:
            self._begun = (time.perf_counter(), time.process_time())

    def committed(self) -> None:
        """All made so far is committed; the last time counts."""
        self._ended = (time.perf_counter(), time.process_time())

    @property
    def wall_s(self) -> float:
        """Seconds on the wall."""
        return self._ended[0] - (self._begun or self._ended)[0]

    @property
    def cpu_s(self) -> float:
        """Seconds of CPU of the process, all its threads."""
        return self._ended[1] - (self._begun or self._ended)[1]
