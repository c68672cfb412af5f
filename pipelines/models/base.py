"""What the runtime asks of a model and of a head, whatever runs them.

A *model* turns a batch of items into raw outputs; a *head* turns raw outputs into answers with a calibrated
confidence.
"""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

__all__ = ["Answers", "Head", "HeadFactory", "Items", "Model", "Outputs"]

Items = NDArray[np.uint8]
"""A batch of items as decoded: uint8, [n, height, width] or [n, height, width, channels]."""

Outputs = NDArray[np.float32]
"""What a model says of a batch: float32, [n, classes], logits or probabilities."""


class Answers(NamedTuple):
    """Answers to a batch. `label` indexes the head's labels; `confidence` lies in 0..1 and is calibrated."""

    label: NDArray[np.intp]
    confidence: NDArray[np.float32]


class Model(Protocol):
    """Runs batches. One thread at a time."""

    @property
    def item_shape(self) -> tuple[int | None, int | None, int]:
        """Height, width and channels of an item; None where any size will do."""
        ...

    @property
    def classes(self) -> int:
        """Columns of the outputs."""
        ...

    def check_item(self, shape: tuple[int, ...], dtype: Any) -> None:
        """Raise `ModelError` where an item of this shape and dtype cannot be run."""
        ...

    def run(self, batch: Items) -> Outputs:
        """Outputs of a batch, [n, classes]."""
        ...


@runtime_checkable
class Head(Protocol):
    """Reads a model's outputs. Built once from labels and temperature, then called for every batch."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the outputs' columns."""
        ...

    def read(self, outputs: Outputs) -> Answers:
        """Label and calibrated confidence of each row."""
        ...


class HeadFactory(Protocol):
    """What an entry point of group `tidegate.heads`, or a `module:function`, must be."""

    def __call__(self, labels: tuple[str, ...], temperature: float) -> Head:
        """A head for these labels, dividing logits by `temperature`."""
        ...
