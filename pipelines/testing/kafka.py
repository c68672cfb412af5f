"""One Kafka node in a container, with the settings that let a worker take over within seconds."""

import os
from importlib import resources
from typing import Any

from testcontainers.core.container import DockerContainer
from testcontainers.core.network import Network
from testcontainers.core.wait_strategies import LogMessageWaitStrategy

from pipelines.transport.broker.node import free_port, kafka_uuid
from pipelines.transport.broker.settings import SINGLE_NODE, TAKE_OVER

IMAGE = "apache/kafka:4.3.0"
"""Unless `KAFKA_IMAGE` names another with the same start contract."""

READY_MOST_S = 60

START = resources.files("pipelines.transport.broker").joinpath("container.sh")
"""Safe for transactions when it starts again, as the image's own start is not."""


class KafkaNode(DockerContainer):
    """A broker and controller in one. Containers of `network` reach it by `name`, this machine at `bootstrap`.

    Its port on this machine is fixed when it is made, so that clients find it again after a restart.
    """

    def __init__(self, name: str, network: Network, image: str | None = None) -> None:
        super().__init__(image or os.environ.get("KAFKA_IMAGE", IMAGE))
        self.name = name
        self.port = free_port()
        self.with_network(network).with_network_aliases(name)
        # `with_bind_ports` takes a port alone, and would open it to every interface; docker's client takes both.
        self.ports["9094"] = ("127.0.0.1", self.port)  # type: ignore[assignment]
        self.with_command(["bash", "-c", START.read_text("utf-8")])
        self.with_env("CLUSTER_ID", kafka_uuid())
        for key, value in self._properties().items():
            self.with_env(f"KAFKA_{key.upper().replace('.', '_')}", str(value))
        self.waiting_for(LogMessageWaitStrategy("Kafka Server started").with_startup_timeout(READY_MOST_S))

    @property
    def bootstrap(self) -> str:
        """Its address for clients on this machine."""
        return f"127.0.0.1:{self.port}"

    @property
    def inside(self) -> str:
        """Its address for containers of its network."""
        return f"{self.name}:9092"

    def _properties(self) -> dict[str, Any]:
        return {
            "process.roles": "broker,controller",
            "node.id": 1,
            "controller.quorum.voters": "1@localhost:9093",
            "controller.listener.names": "CONTROLLER",
            "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,HOST:PLAINTEXT",
            "listeners": "PLAINTEXT://:9092,CONTROLLER://:9093,HOST://:9094",
            "advertised.listeners": f"PLAINTEXT://{self.inside},HOST://{self.bootstrap}",
            "inter.broker.listener.name": "PLAINTEXT",
            "auto.create.topics.enable": "false",
            "log.dirs": "/var/lib/kafka/data",
            **SINGLE_NODE,
            **TAKE_OVER,
        }

    def restart(self, *, killed: bool = False) -> None:
        """Stop it (`killed`: by `kill -9`) and start it again on the same data."""
        container = self.get_wrapped_container()
        if killed:
            container.kill()
            container.start()
        else:
            container.restart()
