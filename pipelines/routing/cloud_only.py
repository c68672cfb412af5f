"""`cloud_only`: everything is sent on while the cloud can be reached; the edge's model, if any, carries an outage."""

from typing import ClassVar

import msgspec

from pipelines.routing.base import EdgeAnswers, Items, Route, Routes, Signals, decide

POLICY_CLOUD_ONLY, CLOUD_AWAY, PAST_DEADLINE = range(3)


class CloudOnly(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Takes no options."""

    reasons: ClassVar[tuple[str, ...]] = ("policy_cloud_only", "cloud_away", "past_deadline")
    uses_model: ClassVar[bool] = False

    def admit(self, items: Items, signals: Signals) -> Routes:
        """Sent on, except what the cloud could not answer in time: the edge's answer is late too, but it is one."""
        return decide(
            items.n,
            (not signals.cloud_reachable, Route.HERE, CLOUD_AWAY),
            (items.deadline_us <= signals.now_us, Route.HERE, PAST_DEADLINE),
            (True, Route.CLOUD, POLICY_CLOUD_ONLY),
        )

    def escalate(self, items: Items, answers: EdgeAnswers, signals: Signals) -> Routes:
        """As `admit`: confidence plays no part."""
        return self.admit(items, signals)
