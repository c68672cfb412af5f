"""What the poll thread tells beside the engine's events."""

from collections.abc import Mapping

import msgspec

from pipelines.transport.base import Commit, Partition


class Assigned(msgspec.Struct, frozen=True):
    """These partitions are read from now on, from these commits."""

    commits: Mapping[Partition, Commit]


class Rewound(msgspec.Struct, frozen=True):
    """What is read from now on comes from these commits. `number` is that of the `GoBack` that it answers."""

    commits: Mapping[Partition, Commit]
    number: int
