"""What a secured node stands on: an authority of its own, its certificate, and one for its operator.

security/ca.crt ca.key         whose certificates the node takes; `tidegate site add --ca-dir` signs sites' with it
security/broker.pem            the node's key and certificate
security/admin.crt admin.key   the operator: may do everything
"""

import datetime
from pathlib import Path

from pipelines.transport.broker.settings import ADMIN_USER, HOST, NODE_PEM, NODE_USER

NODE_DAYS = 3650


def ensure_security(folder: Path) -> None:
    """Make what is missing; a few milliseconds where nothing is."""
    if (folder / NODE_PEM).is_file():
        return
    # Loaded here: a broker without security needs none of it.
    from pipelines.transport.certificates import ensure_authority, write_private, write_public

    now = datetime.datetime.now(datetime.UTC)
    authority = ensure_authority(folder, "tidegate embedded Kafka", now)
    admin = authority.issue(ADMIN_USER, now, days=NODE_DAYS)
    write_private(folder / f"{ADMIN_USER}.key", admin.key)
    write_public(folder / f"{ADMIN_USER}.crt", admin.certificate)
    node = authority.issue(NODE_USER, now, days=NODE_DAYS, hosts=[HOST, "localhost"])
    write_private(folder / NODE_PEM, node.key + node.certificate)
