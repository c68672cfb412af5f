"""What a run waits for before its producer starts."""

from pipelines.cli.session import credit_came
from pipelines.transport.base import OutRecord
from schemas import wire
from schemas.control import CREDIT_KEY, Credit, producer_key
from schemas.positions import Owner
from schemas.topics import SiteTopics

TOPICS = SiteTopics("dock")
CREDIT = OutRecord(TOPICS.control, wire.encode(Credit("dock", 7, 1_500, "cloud-0")), CREDIT_KEY, 0)
CLAIM = OutRecord(TOPICS.control, wire.encode(Owner("worker.ab", 7)), producer_key(0), 0)


class Edge:
    """Has a control topic."""

    def __init__(self, *records):
        self.records = records

    def read_all(self, topics, starts):
        assert topics == [TOPICS.control]

        class Stored:
            def __init__(self, out):
                self.key = lambda: out.key

        return [Stored(out) for out in self.records[starts[TOPICS.control, 0] :]]


def test_only_credit_since_the_beginning_is_credit():
    since = {(TOPICS.control, 0): 1}
    assert not credit_came(Edge(CREDIT), TOPICS, since)
    assert not credit_came(Edge(CREDIT, CLAIM, CLAIM), TOPICS, since)
    assert credit_came(Edge(CREDIT, CLAIM, CREDIT), TOPICS, since)
