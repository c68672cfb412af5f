"""The records and the two jobs of `benchmarks.engine`. Standard library only, so that any environment can make them.

Format
    A record's value is 100 bytes: key u32, event time i64 (us), value i64, 80 bytes of a sensor's name; little-endian.
    It has no headers, and as its Kafka key the key's two digits. A key's records all lie in partition key %
    PARTITIONS, and their times never go back.

Jobs
    stateless   each record again, its value times FACTOR
    window      a key's mean value over each second of event time, once a later second has begun in the partition:
                JSON {"key", "start_us", "mean"}. What is still open at the end is not written.
"""

import struct
from collections.abc import Iterator

RECORD = struct.Struct("<Iqq80s")
RECORD_BYTES = RECORD.size
PARTITIONS = 4
KEYS = 16
FACTOR = 3
WINDOW_US = 1_000_000
STEP_US = 50
"""Of event time between two records: 20,000 a second, 1,250 of each key."""
FIRST_US = 1_700_000_000_000_000
NAME = b"site-1/hall-3/line-07/press-12/bearing-temperature/degrees-celsius-times-1000".ljust(80, b".")


def records(partition: int, count: int) -> Iterator[tuple[bytes, bytes]]:
    """Kafka key and value of the first `count` records of a partition."""
    keys = range(partition, KEYS, PARTITIONS)
    for index in range(count):
        key, at_us = keys[index % len(keys)], FIRST_US + index * PARTITIONS * STEP_US
        yield b"%02d" % key, RECORD.pack(key, at_us, 20_000 + index * 7919 % 5000, NAME)
