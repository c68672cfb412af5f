"""Whether the cloud can be reached, from the credit that it sends and when that came. Pure: time is an argument.

The cloud is taken for away once `ttl_ms` have passed since the last credit (a ttl covers at least three of the
cloud's heartbeats, so two may be lost). It is taken for back once credit has kept coming for a third of its ttl, that
is for about one more heartbeat, without a gap as long as the ttl. Why not at the first credit: a link that lets one
through now and then, and a downlink that after an outage carries a backlog of old credits in one burst, would each
send items into a cloud that answers none of them. The price is one heartbeat more of the edge alone, where everything
is answered anyway. At the start the credits that lie in the topic count by the times at which they came.
"""

import msgspec

from schemas.control import Credit

SHARE_OF_TTL = 3
"""Credit must have kept coming for ttl / SHARE_OF_TTL."""


class Reachability(msgspec.Struct, frozen=True):
    """What the credits received so far say. Times are microseconds since the Unix epoch on the site's clock."""

    since_us: int = 0
    """Start of the present run of credits without a gap as long as the ttl."""
    last_us: int = 0
    """When the last credit came."""
    ttl_us: int = 0
    """Of the last credit; 0 where none came yet."""

    def after(self, credit: Credit, received_us: int) -> "Reachability":
        """The same with one more credit. Credits may come out of order; an older one changes nothing."""
        if received_us < self.last_us:
            return self
        begins_anew = received_us >= self.last_us + self.ttl_us
        return Reachability(
            since_us=received_us if begins_anew else self.since_us,
            last_us=received_us,
            ttl_us=max(credit.ttl_ms, 0) * 1000,
        )

    def reachable(self, now_us: int) -> bool:
        """Whether the cloud is taken for reachable at `now_us`."""
        steady = (self.last_us - self.since_us) * SHARE_OF_TTL >= self.ttl_us
        return steady and now_us < self.last_us + self.ttl_us
