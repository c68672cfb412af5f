"""Who goes on under a transactional id: of several lives of a process always the one that claimed it last.

`Transactions.start` does not decide that: each fences the other, and who was fenced cannot tell a successor from a
coordinator that gave its transaction up. So a life claims what it is about to take, and the log's order decides.

Constraints
- At first: claim, `start`, read positions. After any failure: look at the claims, `start`, read positions. A look that
  finds another's claim behind ours raises `TakenOver`; one that cannot be made is no answer, and is made again.
- A life claims once, and its `instance` is no other life's, not even of the same process.
- A life begins at the end of the log as it stands before its first try to claim, and looks at what lies behind: whom it
  takes over from is none of its business, and a look that sees less of the log than it might is never wrong.
- Claims are transactions under an id of their own (`owner_id`): who begins to claim ends the open try of anybody else,
  so none appears late. Under the id itself a claim could only come after `start`, and would be fenced by the one that
  it takes over from; a plain write, under no id, might still arrive when its writer is long given up.

Format: `Owner`, JSON, under one key of a compacted topic of one partition.

Operation, with 1 the older life and 2 the newer
    claim 1, start 1, claim 2            1 works until start 2 fences it. It looks, finds claim 2 and ends; whether 2
                                         has written anything yet, or ever will, does not matter.
    claim 1, claim 2, start 2, start 1   1 had made its look, and fences 2. 2 looks, finds its own claim, starts again
                                         and fences 1, which ends.
    claim 1, start 1, time-out           1 looks, finds its own claim, and goes on.
    claim 1 of unknown end, or refused   The next try starts the claims' id, which decides what became of it, and looks.
                                         Our claim: it stands. None: it is written. Another's: that life began to claim
                                         after us, so we end.
    claim 1 fenced by a try of 2         1 gives way: it only looks, `GIVES_WAY` times, and ends when claim 2 is there.
                                         Is it not (2 died, or a time-out fenced 1), 1 tries again.
    claim 2, and 2 dies                  1 ends at its next failure, and its supervisor starts a life that claims.

The last life to claim never ends by this. Any other starts once more at the most, if it was past its look when the last
claim came; so fencing back and forth ends. A life that claimed twice, since a look did not see its first claim, would
do no harm: the last claim decides all the same.
"""

import time

import structlog

from pipelines.errors import Fenced, ForeignRecord, TakenOver
from pipelines.transport.base import Cluster, OutRecord
from schemas import wire
from schemas.positions import Owner, owner_id

log = structlog.get_logger("tidegate.ownership")

GIVES_WAY = 5
"""Looks. Their waits are the caller's, which double: some 5 s. A claim that another has open times out at 1.5 s."""


class Ownership:
    """One life's claim on a transactional id. `topic` and `key` say where claims on it are written."""

    def __init__(self, cluster: Cluster, transactional_id: str, topic: str, key: bytes, instance: str) -> None:
        self._cluster, self._id = cluster, transactional_id
        self._topic, self._key, self._instance = topic, key, instance
        self._began_at: int | None = None
        """The end of the log before the first try to claim."""
        self._looks_first = 0
        self._claimed = False

    def ensure(self) -> None:
        """Claim, the first time; later end where another has claimed since. Comes before every `Transactions.start`.

        Raises `TakenOver`, and what a try ends with that may be made again: `Fenced`, `TransportError`, `BrokerError`.
        """
        if self._claimed:
            self._is_ours()
            return
        if self._looks_first:
            self._looks_first -= 1
            if not self._is_ours():
                raise Fenced(f"another life begins to claim '{self._id}'")
        else:
            self._claim()
        self._claimed = True
        log.info("claimed", id=self._id, instance=self._instance)

    def _claim(self) -> None:
        """Write our claim, if it is not there yet."""
        writer = self._cluster.transactions(owner_id(self._id))
        try:
            writer.start()
            if self._began_at is None:
                self._began_at = self._cluster.end_offsets([self._topic], stable=False)[self._topic, 0]
            elif self._is_ours():
                return
            claim = wire.encode(Owner(self._instance, time.time_ns() // 1000))
            writer.write([OutRecord(self._topic, claim, self._key, 0)])
        except TakenOver:
            raise
        except Fenced:
            self._looks_first = GIVES_WAY if self._began_at is not None else 0
            raise
        finally:
            writer.close()

    def _is_ours(self) -> bool:
        """Whether our claim is seen. Raises `TakenOver` where another's is seen behind it, or in its place."""
        owner = None
        for record in self._cluster.read_all([self._topic], {(self._topic, 0): self._began_at or 0}):
            if record.key() != self._key:
                continue
            try:
                owner = wire.decode_owner(record.value()).instance
            except ForeignRecord as error:
                # What stood there before stays the truth.
                log.warning("foreign_record", topic=self._topic, offset=record.offset(), error=str(error))
        if owner is not None and owner != self._instance:
            raise TakenOver(f"'{self._id}': '{owner}' took over from '{self._instance}'")
        return owner is not None
