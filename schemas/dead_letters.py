"""What was decided about dead letters: JSON records beside them, in `<site>.dead_letters` and in `dead_letters`.

A disposition lies in the partition of the letters that it names, behind them: whoever reads that partition to its end
knows what became of each, and retention removes a letter before what was decided about it.
"""

import msgspec

from schemas.items import ItemId

__all__ = ["DROPPED", "RETRIED", "Decided", "Disposition"]

RETRIED = "retried"
"""Captured as a new item: `item` names it."""
DROPPED = "dropped"
"""Let go for good."""


class Decided(msgspec.Struct, frozen=True, omit_defaults=True):
    """The letter at `offset` no longer waits."""

    offset: int
    item: ItemId | None = None
    """Stream, epoch and seq of what it was captured as, where it was retried."""


class Disposition(msgspec.Struct, frozen=True):
    """The value of a record with the header `tidegate-disposition`, written in the transaction that carries it out."""

    version: int
    fate: str
    """`retried` or `dropped`. Whatever a later version calls it, these letters no longer wait."""
    letters: list[Decided]
