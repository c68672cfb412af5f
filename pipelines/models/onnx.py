"""Runs a release with ONNX Runtime, one thread a process."""

from typing import Any

import numpy as np
import onnxruntime as ort

from pipelines.errors import ModelError
from pipelines.models.base import Items, Outputs
from pipelines.models.release import Release
from pipelines.models.signature import read_signature

__all__ = ["OnnxModel"]

CHUNK_ITEMS = 64
"""Items a run: throughput is best here and falls off slowly above (measured, see docs/models.md)."""

_PROBE_SIDE = 224


class OnnxModel:
    """A loaded model. Input uint8 or float32 as NHW, NHWC or NCHW; output [n, classes].

    Raises `ModelError` when the file is not a model, has inputs that items cannot fill, or does not answer a probe
    of zeros with one row of classes an item. One thread at a time: the buffer for float32 input is reused.
    """

    def __init__(self, release: Release, threads: int = 1) -> None:
        self.release = release
        self._session = _open(release, threads)
        self._input = read_signature(self._session.get_inputs(), release)
        self._step = self._input.fixed_items or CHUNK_ITEMS
        self._gain, self._offset = self._input.normalisation(release)
        self._buffer = np.empty(0, np.float32)
        self._output, self.classes = self._probe()

    @property
    def item_shape(self) -> tuple[int | None, int | None, int]:
        """Height, width and channels of an item; None where any size will do."""
        return self._input.item_shape

    def check_item(self, shape: tuple[int, ...], dtype: Any) -> None:
        """Raise `ModelError` where items of `shape`, [height, width] or with [.., channels], cannot be run."""
        height, width, channels = self._input.item_shape
        given = (*shape, 1) if len(shape) == 2 else tuple(shape)
        fits = (
            len(given) == 3
            and height in (None, given[0])
            and width in (None, given[1])
            and channels == given[2]
            and np.dtype(dtype) == np.uint8
        )
        if not fits:
            wanted = "x".join("any" if side is None else str(side) for side in self._input.item_shape)
            seen = "x".join(map(str, shape))
            raise ModelError(
                f"model {self.release.path.name} expects items of {wanted} uint8 (height x width x "
                f"channels), the items are {seen} {np.dtype(dtype).name}",
                remedy="resize the items to fit, or name a model that fits them",
            )

    def run(self, batch: Items) -> Outputs:
        """Outputs, float32 [n, classes], of uint8 items [n, height, width] or [n, height, width, channels].

        Runs in chunks; a contiguous batch for a uint8 NHW or NHWC model is handed over without a copy.
        Raises `ModelError` for items of another shape, or where the model fails on them.
        """
        self.check_item(batch.shape[1:], batch.dtype)
        outputs = np.empty((len(batch), self.classes), np.float32)
        for start in range(0, len(batch), self._step):
            chunk = batch[start : start + self._step]
            outputs[start : start + len(chunk)] = self._run(chunk, self._output)[: len(chunk)]
        return outputs

    def _run(self, chunk: Items, output: str) -> Any:
        if self._input.fixed_items is not None and len(chunk) < self._input.fixed_items:
            missing = np.zeros((self._input.fixed_items - len(chunk), *chunk.shape[1:]), np.uint8)
            chunk = np.concatenate([chunk, missing])
        try:
            return self._session.run([output], {self._input.name: self._arrange(chunk)})[0]
        except Exception as error:
            size = "x".join(map(str, chunk.shape[1:]))
            remedy = "state the height and width that it wants, or export it to ONNX again"
            raise _unusable(self.release, f"does not run on items of {size}", error, remedy) from error

    def _arrange(self, chunk: Items) -> np.ndarray[Any, Any]:
        if self._input.layout == "NHW":
            arranged = chunk.reshape(chunk.shape[:3])
        else:
            arranged = chunk.reshape((*chunk.shape[:3], self._input.item_shape[2]))
            if self._input.layout == "NCHW":
                arranged = arranged.transpose(0, 3, 1, 2)
        if self._input.dtype == "uint8":
            return np.ascontiguousarray(arranged)
        if self._buffer.shape[1:] != arranged.shape[1:]:
            self._buffer = np.empty((self._step, *arranged.shape[1:]), np.float32)
        filled = self._buffer[: len(arranged)]
        np.multiply(arranged, self._gain, out=filled)
        filled += self._offset
        return filled

    def _probe(self) -> tuple[str, int]:
        """Name and columns of the one output that is float, [n, classes]."""
        height, width, channels = self._input.item_shape
        rows = self._input.fixed_items or 2
        zeros = np.zeros((rows, height or _PROBE_SIDE, width or _PROBE_SIDE, channels), np.uint8)
        seen: list[str] = []
        found: list[tuple[str, int]] = []
        for output in self._session.get_outputs():
            answer = self._run(zeros, output.name)
            shape: tuple[int, ...] = getattr(answer, "shape", ())
            dtype = getattr(answer, "dtype", type(answer).__name__)
            seen.append(f"{output.name} {dtype}{list(shape)}")
            if dtype == np.float32 and len(shape) == 2 and shape[0] == rows and shape[1] > 1:
                found.append((output.name, shape[1]))
        if len(found) != 1:
            raise ModelError(
                f"model {self.release.path} answers {rows} items with {', '.join(seen)}, "
                f"not with one float32 [{rows}, classes]",
                remedy="export a classifier with one output of logits or probabilities",
            )
        return found[0]


def _open(release: Release, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        return ort.InferenceSession(str(release.path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise _unusable(release, "is damaged or not an ONNX model", error, "export it to ONNX again") from error


def _unusable(release: Release, what: str, error: Exception, remedy: str) -> ModelError:
    reason = " ".join(str(error).split())[:160]
    return ModelError(f"model {release.path} {what} ({reason})", remedy=remedy)
