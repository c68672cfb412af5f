"""Bytes of items in, answers out: decode, fit to the model, run, read. What both inference workers do to a batch.

Operation
    group by (codec, params) ─▶ decode ─▶ fit to the model's input ─▶ model, CHUNK_ITEMS at a time ─▶ head, once

Fitting is grey to colour or colour to grey, then a resize, each only where the model's input asks for it: a folder may
hold both kinds, and files of any size. Raw payloads of one shape are not decoded one by one: their bytes are joined and
looked at as one array. An item that cannot be answered is told apart with a bounded word and takes no other with it.
"""

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from math import prod
from typing import Any, NamedTuple

import cv2
import msgspec
import numpy as np
from numpy.typing import NDArray

from pipelines.codecs.base import decode
from pipelines.errors import ConfigError, ModelError, UndecodableItem
from pipelines.models.base import Items
from pipelines.models.heads import head_for
from pipelines.models.onnx import CHUNK_ITEMS, OnnxModel
from pipelines.models.release import Release
from schemas.headers import Header, Params

UNDECODABLE = "undecodable"
UNKNOWN_CODEC = "unknown_codec"
WRONG_SHAPE = "wrong_shape"
MODEL_FAILED = "model_failed"

_CHANNELS = {(1, 3): cv2.COLOR_GRAY2RGB, (3, 1): cv2.COLOR_RGB2GRAY}
"""How items of so many channels become items of as many as the model wants."""

Batches = Iterator[tuple[list[int], Items]]
"""Rows, and their decoded items of one shape."""


class Inferred(msgspec.Struct, frozen=True):
    """The model's answer for one item. `confidence` lies in 0..1 and is calibrated."""

    label: str
    confidence: float


class Undecided(msgspec.Struct, frozen=True):
    """The item cannot be answered. `reason` is one of the four words of this module."""

    reason: str


class Inference(NamedTuple):
    """Answers for n items, as arrays: what the router wants."""

    label: NDArray[np.intp]
    """[n], indexes `ModelRunner.labels`; -1 where undecided."""
    confidence: NDArray[np.float32]
    """[n], 0..1, calibrated; 0 where undecided."""
    undecided: dict[int, str]
    """Row of each item that cannot be answered, and why."""


class ModelRunner:
    """Runs one release on items as they lie in records. Raises `ModelError` where the release cannot be used."""

    def __init__(self, release: Release, threads: int = 1) -> None:
        self._model = OnnxModel(release, threads)
        self._head = head_for(release, self._model.classes)
        self.name = release.model_id
        self.model_s = 0.0
        """Seconds in the model since the start, decoding left out."""
        self.labels = self._head.labels

    def check_items(self, shape: tuple[int, ...]) -> None:
        """Raise `ModelError` where decoded items of `shape` cannot be fitted to the model."""
        self._model.check_item(self._fit(np.zeros((1, *shape), np.uint8)).shape[1:], np.uint8)

    def answer(self, items: Sequence[tuple[Header, bytes]]) -> list[Inferred | Undecided]:
        """One answer for each header and payload, in order."""
        label, confidence, undecided = self.infer(items)
        return [
            Undecided(undecided[row]) if index < 0 else Inferred(self.labels[index], value)
            for row, (index, value) in enumerate(zip(label.tolist(), confidence.tolist(), strict=True))
        ]

    def infer(self, items: Sequence[tuple[Header, bytes]]) -> Inference:
        """As `answer`, but as arrays."""
        undecided: dict[int, str] = {}
        params: Params | None
        rows: list[int]
        groups: defaultdict[tuple[str, Params], list[int]] = defaultdict(list)
        codec, params, rows = "", None, []
        for row, (header, _) in enumerate(items):
            # Neighbours are alike as a rule: to compare is cheaper than to hash.
            if header.params != params or header.codec != codec:
                codec, params = header.codec, header.params
                rows = groups[codec, params]
            rows.append(row)
        outputs = np.zeros((len(items), self._model.classes), np.float32)
        for (codec, params), rows in groups.items():
            take = self._joined if codec == "raw" and params.dtype == "uint8" else self._one_by_one
            for start in range(0, len(rows), CHUNK_ITEMS):
                for few, batch in take(items, rows[start : start + CHUNK_ITEMS], undecided):
                    self._run(few, batch, outputs, undecided)
        return self._read(outputs, undecided)

    def _joined(self, items: Sequence[tuple[Header, bytes]], rows: list[int], undecided: dict[int, str]) -> Batches:
        """Raw payloads of one shape, as one array without a copy of each."""
        shape = items[rows[0]][0].params.shape
        if len(shape) not in (2, 3) or min(shape) < 1:
            undecided.update(dict.fromkeys(rows, WRONG_SHAPE))
            return
        size = prod(shape)
        payloads = [items[row][1] for row in rows]
        if set(map(len, payloads)) != {size}:
            undecided.update((row, UNDECODABLE) for row in rows if len(items[row][1]) != size)
            rows = [row for row in rows if row not in undecided]
            payloads = [items[row][1] for row in rows]
        if rows:
            yield rows, np.frombuffer(b"".join(payloads), np.uint8).reshape(len(rows), *shape)

    def _one_by_one(self, items: Sequence[tuple[Header, bytes]], rows: list[int], undecided: dict[int, str]) -> Batches:
        """Decoded and resized one after the other, so that only one is held at full size."""
        by_shape: defaultdict[tuple[int, ...], list[tuple[int, Items]]] = defaultdict(list)
        for row in rows:
            try:
                item = self._fit(decode(*items[row])[np.newaxis])[0]
            except UndecodableItem:
                undecided[row] = UNDECODABLE
            except ConfigError:
                undecided[row] = UNKNOWN_CODEC
            except cv2.error:
                undecided[row] = WRONG_SHAPE
            else:
                by_shape[item.shape].append((row, item))
        for found in by_shape.values():
            yield [row for row, _ in found], np.stack([item for _, item in found])

    def _fit(self, batch: Items) -> Items:
        """In the model's channels and of its fixed size; as it is where nothing is to be done, or cannot be."""
        height, width, channels = self._model.item_shape
        given = batch.shape[3] if batch.ndim == 4 else 1
        size = None if height is None or width is None or batch.shape[1:3] == (height, width) else (width, height)
        convert = _CHANNELS.get((given, channels))
        if batch.ndim not in (3, 4) or (given != channels and convert is None) or (size is None and convert is None):
            return batch
        fitted = []
        for item in batch:
            image = item if convert is None else cv2.cvtColor(item, convert)
            fitted.append(image if size is None else cv2.resize(image, size, interpolation=cv2.INTER_LINEAR))
        return np.asarray(np.stack(fitted), np.uint8)

    def _run(self, rows: list[int], batch: Items, outputs: NDArray[np.float32], undecided: dict[int, str]) -> None:
        reason = WRONG_SHAPE
        try:
            batch = self._fit(batch)
            self._model.check_item(batch.shape[1:], batch.dtype)
            # A model that takes any size may still fail on some, such as one smaller than its kernels.
            reason = MODEL_FAILED
            began_s = time.perf_counter()
            outputs[rows] = self._model.run(batch)
            self.model_s += time.perf_counter() - began_s
        except (ModelError, cv2.error):
            undecided.update(dict.fromkeys(rows, reason))

    def _read(self, outputs: NDArray[np.float32], undecided: dict[int, str]) -> Inference:
        label = np.full(len(outputs), -1, np.intp)
        confidence = np.zeros(len(outputs), np.float32)
        decided: Any = np.setdiff1d(np.arange(len(outputs)), list(undecided)) if undecided else slice(None)
        label[decided], confidence[decided] = self._head.read(outputs[decided])
        return Inference(label, confidence, undecided)
