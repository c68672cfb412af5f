"""The ledger: every item ends as exactly one outcome, and a mark says so.

Marks are ranges of seq, written in the transaction of the work they account for. What has no mark is in flight.
"""

from enum import StrEnum

import msgspec

__all__ = ["Mark", "MarkBatch", "Outcome"]


class Outcome(StrEnum):
    """How an item ended. Exactly one an item."""

    ANSWERED_EDGE = "answered_edge"
    ANSWERED_EDGE_FALLBACK = "answered_edge_fallback"
    """The cloud was asked and did not answer in time; the edge's own answer stands."""
    ANSWERED_CLOUD = "answered_cloud"
    GATED = "gated"
    SUPERSEDED = "superseded"
    EXPIRED = "expired"
    """The deadline passed and nobody had an answer."""
    SHED = "shed"
    DEAD_LETTERED = "dead_lettered"


class Mark(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """Seqs `first_seq` to `last_seq`, both included, of one stream and epoch ended as `outcome`."""

    stream: str
    epoch: int
    first_seq: int
    last_seq: int
    outcome: Outcome
    reason: str = ""
    """For `shed` and `dead_lettered`: a bounded word, such as `undecodable`."""


class MarkBatch(msgspec.Struct, frozen=True):
    """The value of a record in `<site>.ledger`: the marks of one transaction and partition."""

    version: int
    site: str
    marks: list[Mark]
