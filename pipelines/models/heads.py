"""Heads by name, and the one for classification."""

from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

import numpy as np

from pipelines.errors import ModelError
from pipelines.models.base import Answers, Head, HeadFactory, Outputs
from pipelines.models.release import Release

__all__ = ["Classify", "head_for"]

GROUP = "tidegate.heads"
_SUM_TOLERANCE = 1e-3


class Classify:
    """One label an item: the largest output, with temperature-scaled confidence.

    Temperature scaling: Guo, Pleiss, Sun, Weinberger, "On Calibration of Modern Neural Networks", ICML 2017.
    Dividing logits by a temperature changes confidence and never the label.
    """

    def __init__(self, labels: tuple[str, ...], temperature: float = 1.0) -> None:
        if not temperature > 0:
            raise ModelError(f"temperature is {temperature}", remedy="give a temperature above 0")
        self.labels = labels
        self.temperature = temperature

    def read(self, outputs: Outputs) -> Answers:
        """Label index and confidence of each row of `outputs`, float [n, classes].

        Outputs that are probabilities already are taken as such. A row that is not finite gets confidence 0,
        so that it is never trusted.
        """
        if len(outputs) == 0:
            return Answers(np.empty(0, np.intp), np.empty(0, np.float32))
        logits = log_probabilities(outputs) if are_probabilities(outputs) else outputs
        return Answers(np.argmax(logits, axis=1), top_confidence(logits, self.temperature))


def are_probabilities(outputs: Outputs) -> bool:
    """Whether every row lies in 0..1 and sums to 1: outputs of a model that ends in a softmax."""
    return bool(outputs.min() >= 0 and outputs.max() <= 1 and np.all(np.abs(outputs.sum(axis=1) - 1) <= _SUM_TOLERANCE))


def log_probabilities(probabilities: Outputs) -> Outputs:
    """Logits whose softmax is `probabilities`; 0 is held at the smallest normal float32."""
    return np.log(np.maximum(probabilities, np.finfo(np.float32).tiny), dtype=np.float32)


def top_confidence(logits: Outputs, temperature: float) -> Outputs:
    """Largest entry a row of softmax(logits / temperature), float32 [n]; 0 where the row is not finite."""
    with np.errstate(invalid="ignore", over="ignore"):
        shifted = (logits - logits.max(axis=1, keepdims=True)) / temperature
        top = 1 / np.exp(shifted).sum(axis=1)
    return np.where(np.isfinite(logits).all(axis=1), top, 0).astype(np.float32)


def find_head(name: str) -> HeadFactory:
    """The head called `name`: an entry point of group `tidegate.heads`, or `module:function`."""
    if ":" in name:
        module, _, attribute = name.partition(":")
        try:
            found: Any = getattr(import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise ModelError(
                f"head '{name}' cannot be imported ({error})",
                remedy="write it as module:function, both importable",
            ) from error
    else:
        points = {point.name: point for point in entry_points(group=GROUP)}
        if name not in points:
            raise ModelError(
                f"there is no head '{name}'",
                remedy=f"choose one of {', '.join(sorted(points))}, or write module:function",
            )
        found = points[name].load()
    if not callable(found):
        raise ModelError(f"head '{name}' cannot be called", remedy="name a class or function of (labels, temperature)")
    factory: HeadFactory = found
    return factory


def head_for(release: Release, classes: int) -> Head:
    """The head that the card of `release` names, for a model with `classes` outputs.

    Without labels the classes are called "0", "1" and so on. Raises `ModelError` where labels and
    classes differ in number.
    """
    labels = release.card.labels or tuple(str(index) for index in range(classes))
    if len(labels) != classes:
        raise ModelError(
            f"model {release.path} has {classes} classes and {len(labels)} labels",
            remedy="give one label a class",
        )
    return find_head(release.card.head)(labels, release.card.temperature)
