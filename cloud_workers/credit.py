"""The cloud's heartbeat to its sites, the first form of credit: while it comes, the cloud is there and works.

It is written by the stage that runs the model, from its own thread: a stuck model or a broker that is away sends none,
and at the edge the last one expires.
"""

from collections.abc import Sequence

from pipelines.transport.base import OutRecord
from schemas import wire
from schemas.control import Credit
from schemas.topics import CONTROL


class CreditBeat:
    """Grants each of `sites` credit for `ttl_ms`, every `interval_ms`. `worker` names this process to people."""

    def __init__(self, sites: Sequence[str], worker: str, interval_ms: int = 500, ttl_ms: int = 2000) -> None:
        self._sites = sites
        self._worker = worker
        self._interval_us = interval_ms * 1000
        self._ttl_ms = ttl_ms
        self._last_us: int | None = None

    def due(self, now_us: int) -> list[OutRecord]:
        """The heartbeats to be written now, none or one a site. A clock that was set back makes them due too."""
        if self._last_us is not None and 0 <= now_us - self._last_us < self._interval_us:
            return []
        self._last_us = now_us
        return [
            OutRecord(CONTROL, wire.encode(Credit(site, now_us, self._ttl_ms, self._worker)), site.encode(), 0)
            for site in self._sites
        ]
