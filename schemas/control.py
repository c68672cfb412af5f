"""Control: what the cloud grants a site, and who holds a producer's slot.

`control` in the cloud, keyed by site, holds `Credit`. `<site>.control` at the edge is keyed by kind: `credit` has the
site's own `Credit`, `producer.<slot>` an `Owner` (`schemas/positions.py`). Readers pass over all other keys.
"""

import msgspec

__all__ = ["CREDIT_KEY", "Credit", "producer_key"]


class Credit(msgspec.Struct, frozen=True):
    """A cloud worker's heartbeat to a site. Good for `ttl_ms` after the edge received it, then the cloud is away."""

    site: str
    issued_us: int
    ttl_ms: int
    worker: str


CREDIT_KEY = b"credit"


def producer_key(slot: int) -> bytes:
    """The key of the claim on a producer's slot."""
    return b"producer.%d" % slot
