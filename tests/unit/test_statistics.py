"""What a reader concludes from its client's statistics, as librdkafka writes them."""

import json
from contextlib import closing

import pytest

from pipelines.transport.kafka_read import KafkaGroupReader


class Nobody:
    def assigned(self, partitions):
        pass

    revoked = lost = assigned


def statistics(**figures):
    return json.dumps(
        {
            "name": "edge-0",
            "brokers": {"a:9092": {"tx": 3}},
            "topics": {"shop.items": {"topic": "shop.items", "partitions": {"-1": {"fetchq_cnt": 9}, "3": figures}}},
        }
    )


@pytest.mark.parametrize(
    ("figures", "unread"),
    [
        ({"fetchq_cnt": 0, "next_offset": 7, "ls_offset": 7, "hi_offset": 9}, False),
        ({"fetchq_cnt": 0, "next_offset": 6, "ls_offset": 7}, True),
        ({"fetchq_cnt": 1, "next_offset": 7, "ls_offset": 7}, True),
        ({"fetchq_cnt": 0, "next_offset": -1001, "ls_offset": 7}, False),
        ({"fetchq_cnt": 0, "next_offset": 7, "ls_offset": -1001}, False),
        ({}, False),
    ],
    ids=["all read", "not fetched", "not handed out", "position unknown", "end unknown", "nothing known"],
)
def test_unread_is_what_a_reader_may_see_and_was_not_handed_out(figures, unread):
    options = {"bootstrap.servers": "127.0.0.1:1", "log_level": 0}
    with closing(KafkaGroupReader(options, "g", ["shop.items"], Nobody())) as reader:
        reader._note_statistics(statistics(**figures))
        assert not reader.has_unread, "it holds no partition"
        reader._held = {("shop.items", 3), ("shop.items", 4), ("other", 0)}
        reader._note_statistics(statistics(**figures))
        assert reader.has_unread == unread
