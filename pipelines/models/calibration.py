"""Calibration from images that were neither trained on nor will be judged on: the temperature and the threshold."""

from math import exp, log, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.models.base import Outputs

_LOG_TEMPERATURE_RANGE = (log(0.05), log(20.0))
_STEPS = 40
_GOLDEN = (sqrt(5) - 1) / 2


def negative_log_likelihood(logits: Outputs, truth: NDArray[Any], temperature: float) -> float:
    """Mean of -log softmax(logits / temperature) at the true class, in nats. `truth` holds class indices, [n]."""
    scaled = logits.astype(np.float64) / temperature
    scaled -= scaled.max(axis=1, keepdims=True)
    return float(np.mean(np.log(np.exp(scaled).sum(axis=1)) - scaled[np.arange(len(scaled)), truth]))


def fit_temperature(logits: Outputs, truth: NDArray[Any]) -> float:
    """The temperature in 0.05..20 of least negative log likelihood (Guo et al., ICML 2017).

    The likelihood has one maximum over the temperature (it is concave in 1 / temperature), so golden-section search
    finds it; 40 steps narrow the logarithm below 1e-7.
    """
    low, high = _LOG_TEMPERATURE_RANGE
    for _ in range(_STEPS):
        left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
        if negative_log_likelihood(logits, truth, exp(left)) <= negative_log_likelihood(logits, truth, exp(right)):
            high = right
        else:
            low = left
    return exp((low + high) / 2)


def threshold_for_share(confidence: NDArray[np.float32], share: float) -> float:
    """The threshold under which at most `share` (0..1) of these confidences lie; ties stay above it.

    An answer is escalated when its confidence is *under* the threshold.
    """
    ordered = np.sort(confidence)
    return float(ordered[min(int(share * len(ordered)), len(ordered) - 1)])
