"""The identity of an item, the unit of account: one frame, or one block of sensor samples."""

import msgspec

__all__ = ["ItemId"]


class ItemId(msgspec.Struct, frozen=True, order=True, array_like=True):
    """Names an item for life. `seq` is dense from 0 within an epoch; only a lost position begins a new epoch."""

    stream: str
    epoch: int
    seq: int

    def __str__(self) -> str:
        return f"{self.stream} {self.epoch} {self.seq}"
