"""`edge_only`: everything is answered here. The base line, and what a site does that has no cloud."""

from typing import ClassVar

import msgspec

from pipelines.routing.base import EdgeAnswers, Items, Route, Routes, Signals, decide


class EdgeOnly(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Takes no options."""

    reasons: ClassVar[tuple[str, ...]] = ("policy_edge_only",)
    uses_model: ClassVar[bool] = True

    def admit(self, items: Items, signals: Signals) -> Routes:
        """All stay here."""
        return decide(items.n, (True, Route.HERE, 0))

    def escalate(self, items: Items, answers: EdgeAnswers, signals: Signals) -> Routes:
        """Every answer stands."""
        return self.admit(items, signals)
