"""The broker's settings as a pure function. What each is for and what it was measured to give: docs/broker.md."""

from collections.abc import Mapping

import msgspec

HOST = "127.0.0.1"

# A dead worker is noticed in 3 s. Its open transaction is ended by its successor's `start`, else by the sweep: 1.5 s
# (the clients' time-out) and up to 0.5 s. A sweep so quick is safe only because a node is fenced
# before it starts again (`fence` in process.py).
TAKE_OVER = {
    "group.consumer.heartbeat.interval.ms": 300,
    "group.consumer.min.heartbeat.interval.ms": 300,
    "group.consumer.session.timeout.ms": 3000,
    "group.consumer.min.session.timeout.ms": 3000,
    "group.min.session.timeout.ms": 3000,
    "group.initial.rebalance.delay.ms": 0,
    "transaction.abort.timed.out.transaction.cleanup.interval.ms": 500,
    # After `kill -9` a node waits until its old session ends before it may register again.
    "broker.session.timeout.ms": 2000,
    "broker.heartbeat.interval.ms": 500,
}

FENCING = {"process.roles": "controller", "broker.session.timeout.ms": 100, "broker.heartbeat.interval.ms": 50}
"""Of a controller alone, which ends the session of the broker's last life: there is nobody left to wait for."""

SINGLE_NODE = {
    # It would hand its partitions to nobody, and tear transactions as it does: see `fence` in process.py.
    "controlled.shutdown.enable": "false",
    "offsets.topic.replication.factor": 1,
    "transaction.state.log.replication.factor": 1,
    "transaction.state.log.min.isr": 1,
    "share.coordinator.state.topic.replication.factor": 1,
    "share.coordinator.state.topic.min.isr": 1,
    "default.replication.factor": 1,
    "min.insync.replicas": 1,
    # Every partition of these costs files, memory and time at start; 50 is for clusters of many nodes.
    "offsets.topic.num.partitions": 8,
    "transaction.state.log.num.partitions": 8,
    "share.coordinator.state.topic.num.partitions": 8,
}

HOUSEKEEPING = {
    "auto.create.topics.enable": "false",
    "num.partitions": 1,
    "num.network.threads": 2,
    "num.io.threads": 4,
    "log.retention.check.interval.ms": 60_000,
    # A year. By default a pipeline that is not run for a week loses where its groups stood.
    "offsets.retention.minutes": 525_600,
    "log.cleaner.dedupe.buffer.size": 16 * 1024 * 1024,
}


NODE_USER, ADMIN_USER = "broker", "admin"
"""The super users of a secured broker: itself, by its certificate, and its operator, by certificate or password."""

SECURITY_DIR = "security"
AUTHORITY, NODE_PEM = "ca.crt", "broker.pem"
"""In `SECURITY_DIR`: whose certificates are taken, and the broker's own certificate behind its key."""

SCRAM = ("SCRAM-SHA-512", "SCRAM-SHA-256")

SECURED = {
    # All three listeners are TLS, the controller's too: who is no super user has no way around the authorizer.
    "listener.security.protocol.map": "MTLS:SSL,SCRAM:SASL_SSL,CONTROLLER:SSL",
    "inter.broker.listener.name": "MTLS",
    "ssl.keystore.type": "PEM",
    "ssl.keystore.location": f"{SECURITY_DIR}/{NODE_PEM}",
    "ssl.truststore.type": "PEM",
    "ssl.truststore.location": f"{SECURITY_DIR}/{AUTHORITY}",
    "ssl.client.auth": "required",
    "listener.name.scram.ssl.client.auth": "none",
    "ssl.principal.mapping.rules": "RULE:^CN=([^,]+)$/$1/,DEFAULT",
    "sasl.enabled.mechanisms": ",".join(SCRAM),
    **{
        f"listener.name.scram.{mechanism.lower()}.sasl.jaas.config": (
            "org.apache.kafka.common.security.scram.ScramLoginModule required;"
        )
        for mechanism in SCRAM
    },
    "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
    "super.users": f"User:{NODE_USER};User:{ADMIN_USER}",
    "allow.everyone.if.no.acl.found": "false",
}


class BrokerSettings(msgspec.Struct, frozen=True):
    """What differs from node to node. Paths are relative to the node's folder, in which the broker runs."""

    broker_port: int
    """Of a secured broker: who connects shows a certificate."""
    controller_port: int
    node_id: int = 1
    log_dirs: str = "data"
    scram_port: int | None = None
    """Given: the broker is secured, and who connects here logs in with user and password."""

    @property
    def bootstrap(self) -> str:
        """What a client is given."""
        return f"{HOST}:{self.broker_port}"

    @property
    def controller(self) -> str:
        """The controller's listener."""
        return f"CONTROLLER://{HOST}:{self.controller_port}"


def server_properties(settings: BrokerSettings) -> str:
    """The text of `server.properties` for one combined KRaft node that listens on the loopback only."""
    return _text(_properties(settings))


def fencing_properties(settings: BrokerSettings) -> str:
    """The text of `fencing.properties`: the same node as a controller alone."""
    combined = _properties(settings)
    for of_a_broker in ("advertised.listeners", "inter.broker.listener.name"):
        del combined[of_a_broker]
    return _text({**combined, "listeners": settings.controller, **FENCING})


def _properties(settings: BrokerSettings) -> dict[str, object]:
    identity: dict[str, object] = {
        "process.roles": "broker,controller",
        "node.id": settings.node_id,
        # A static voter, not a dynamic one: the controller's port may then change from start to start.
        "controller.quorum.voters": f"{settings.node_id}@{HOST}:{settings.controller_port}",
        "listeners": f"PLAINTEXT://{settings.bootstrap},{settings.controller}",
        "advertised.listeners": f"PLAINTEXT://{settings.bootstrap}",
        "controller.listener.names": "CONTROLLER",
        "inter.broker.listener.name": "PLAINTEXT",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "log.dirs": settings.log_dirs,
    }
    if settings.scram_port is not None:
        outside = f"MTLS://{settings.bootstrap},SCRAM://{HOST}:{settings.scram_port}"
        identity |= {
            **SECURED,
            "listeners": f"{outside},{settings.controller}",
            "advertised.listeners": outside,
        }
    return {**identity, **SINGLE_NODE, **TAKE_OVER, **HOUSEKEEPING}


def _text(properties: Mapping[str, object]) -> str:
    return "".join(f"{key}={value}\n" for key, value in properties.items())
