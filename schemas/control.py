"""Control: what the cloud grants a site. `control` in the cloud, keyed by site; `<site>.control` at the edge."""

import msgspec

__all__ = ["CREDIT_KEY", "Credit"]


class Credit(msgspec.Struct, frozen=True):
    """A cloud worker's heartbeat to a site. Good for `ttl_ms` after the edge received it, then the cloud is away."""

    site: str
    issued_us: int
    ttl_ms: int
    worker: str


CREDIT_KEY = b"credit"
