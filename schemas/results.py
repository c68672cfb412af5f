"""Results: one record a micro-batch and partition in `<site>.results`, JSON without headers."""

import msgspec

from schemas.ledger import Outcome

__all__ = ["Result", "ResultBatch"]


class Result(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """The settled answer for one item. Times are microseconds since the Unix epoch."""

    stream: str
    epoch: int
    seq: int
    capture_us: int
    settled_us: int
    outcome: Outcome
    label: str
    confidence: float
    """Calibrated, 0 to 1, of the model named."""
    model: str
    reason: str
    """Why the router decided as it did."""
    edge_label: str | None = None
    """What the edge had said, where the cloud's answer stands."""
    edge_confidence: float | None = None


class ResultBatch(msgspec.Struct, frozen=True):
    """The value of a record in `<site>.results` and `<site>.up.results`."""

    version: int
    site: str
    results: list[Result]
