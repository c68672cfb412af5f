"""Where a cluster's brokers keep their data, and what to say when one takes no more records.

Kafka ends a broker whose disk is full ("all log dirs have failed"): what clients see then is only that nobody answers.
So the folders are asked for while it is well. On the same machine their free space tells whether they are the reason.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

import msgspec

FULL_BYTES = 32 << 20
"""Less free space than this counts as full: a new segment asks for 20 MiB of indexes, and a batch may have 16."""

LOOPBACK = ("127.", "localhost", "[::1]")


class Storage(msgspec.Struct, frozen=True):
    """The folders of a cluster's brokers (`log.dirs`)."""

    cluster: str
    """Its key in the pipeline file, such as `kafka.edge`."""
    bootstrap: str
    folders: Sequence[str] = ()
    """Empty where the cluster does not tell."""

    def free_bytes(self) -> dict[str, int]:
        """Free space of those folders that are on this machine."""
        if not all(address.strip().startswith(LOOPBACK) for address in self.bootstrap.split(",")):
            return {}
        return {folder: free for folder in self.folders if (free := free_bytes(folder)) is not None}

    def full(self) -> bool:
        """Whether the disk of a folder on this machine is full."""
        return any(free < FULL_BYTES for free in self.free_bytes().values())

    def complaint(self) -> tuple[str, str]:
        """What is wrong with a cluster that takes no records, as far as it is to be seen from here, and what to do."""
        who, free = f"{self.cluster} at {self.bootstrap}", self.free_bytes()
        for folder, left in free.items():
            if left < FULL_BYTES:
                problem = f"{who} takes no records: the disk of its folder {folder} is full ({left / 1e6:.1f} MB free)"
                return problem, "make room there and start that Kafka again"
        if free:
            told = ", ".join(f"{folder} ({left / 1e6:,.0f} MB free)" for folder, left in free.items())
            return f"{who} takes no records; its folder is {told}", "look into its log, and start it again if it ended"
        where = f"its folder is {', '.join(self.folders)}" if self.folders else "its `log.dirs` are not known"
        return f"{who} takes no records; {where}", "look there whether that disk is full and whether Kafka runs"


def free_bytes(folder: str) -> int | None:
    """What a user may still write on a folder's disk; None where the folder is not on this machine."""
    try:
        return shutil.disk_usage(folder).free if Path(folder).is_absolute() else None
    except OSError:
        return None
