"""The embedded Kafka: real Apache Kafka from pip alone, owned by this process or detached from it.

with start_owned(Path("data"), name="edge") as broker:
    client = Producer({"bootstrap.servers": broker.bootstrap})
"""

from pipelines.transport.broker.detached import DetachedBroker, start_detached, status_detached, stop_detached
from pipelines.transport.broker.install import install
from pipelines.transport.broker.jars import Progress
from pipelines.transport.broker.jvm import Installation
from pipelines.transport.broker.owned import Broker, start_many_owned, start_owned

__all__ = [
    "Broker",
    "DetachedBroker",
    "Installation",
    "prefetch",
    "start_detached",
    "start_many_owned",
    "start_owned",
    "status_detached",
    "stop_detached",
]


def prefetch(progress: Progress | None = None) -> Installation:
    """Fetch and check the jars and make what later starts need; `progress` is told a line for each step.

    Offline afterwards. Raises `BrokerError`.
    """
    return install(progress)
