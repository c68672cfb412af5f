"""For tests of your own pipelines: an edge and a cloud in containers, with a link between them that can be cut.

    from pipelines.testing import EdgeAndCloud

    with EdgeAndCloud(Path("pipeline.yaml")) as running:
        running.start("edge", replicas=2)
        running.cut()
        ...
        assert running.audit(drain_s=60).balanced

Needs a Docker engine, the images of both tiers, and testcontainers (`pip install 'tidegate[testing]'`).

kafka        one Kafka node in a container
running      both tiers, their workers, and what can happen to them
"""

from pipelines.testing.kafka import KafkaNode
from pipelines.testing.running import EdgeAndCloud

__all__ = ["EdgeAndCloud", "KafkaNode"]
