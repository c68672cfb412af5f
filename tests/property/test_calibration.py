"""Calibrated confidence, the temperature that fits, and the threshold for a share."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from pipelines.models.calibration import fit_temperature, negative_log_likelihood, threshold_for_share
from pipelines.models.heads import Classify, are_probabilities, top_confidence

SHAPES = array_shapes(min_dims=2, max_dims=2, min_side=2, max_side=12)
LOGITS = arrays(np.float32, SHAPES, elements=st.floats(-50, 50, width=32))
# Wider apart, the smaller probability is under the smallest normal float32 and the model's softmax has lost it.
NEAR_LOGITS = arrays(np.float32, SHAPES, elements=st.floats(-40, 40, width=32))
TEMPERATURES = st.floats(0.05, 20)


def softmax(logits: np.ndarray) -> np.ndarray:
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


def labels_of(outputs: np.ndarray) -> tuple[str, ...]:
    return tuple(str(index) for index in range(outputs.shape[1]))


@given(LOGITS, TEMPERATURES)
def test_confidence_is_the_largest_entry_of_the_scaled_softmax(logits: np.ndarray, temperature: float) -> None:
    confidence = top_confidence(logits, temperature)
    np.testing.assert_allclose(confidence, softmax(logits / temperature).max(axis=1), rtol=1e-4)
    assert np.all(confidence >= 1 / logits.shape[1] - 1e-6)
    assert np.all(confidence <= 1)


@given(LOGITS, TEMPERATURES, TEMPERATURES)
def test_temperature_never_changes_a_label_and_lowers_confidence(logits: np.ndarray, one: float, other: float) -> None:
    cold, hot = sorted((one, other))
    first, second = (Classify(labels_of(logits), temperature).read(logits) for temperature in (cold, hot))
    np.testing.assert_array_equal(first.label, second.label)
    assert np.all(first.confidence >= second.confidence - 1e-6)


@given(NEAR_LOGITS, TEMPERATURES)
def test_a_softmax_in_the_model_changes_no_answer(logits: np.ndarray, temperature: float) -> None:
    probabilities = softmax(logits).astype(np.float32)
    assert are_probabilities(probabilities)
    head = Classify(labels_of(logits), temperature)
    np.testing.assert_allclose(
        head.read(probabilities).confidence, top_confidence(logits, temperature), rtol=2e-3, atol=1e-4
    )


@given(LOGITS)
def test_logits_are_not_taken_for_probabilities(logits: np.ndarray) -> None:
    assert not are_probabilities(logits + 2)
    assert not are_probabilities(-np.abs(logits) - 1)


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1), st.floats(0.3, 4))
def test_the_temperature_that_spoilt_the_logits_is_found_again(seed: int, spoilt: float) -> None:
    generator = np.random.default_rng(seed)
    true_logits = generator.normal(0, 2, (2_000, 5)).astype(np.float32)
    drawn = (true_logits + generator.gumbel(size=true_logits.shape)).argmax(axis=1)
    assert fit_temperature(true_logits * np.float32(spoilt), drawn) == pytest.approx(spoilt, rel=0.25)


@given(st.integers(0, 2**32 - 1), TEMPERATURES)
def test_no_temperature_is_more_likely_than_the_fitted_one(seed: int, other: float) -> None:
    generator = np.random.default_rng(seed)
    logits = generator.normal(0, 3, (50, 4)).astype(np.float32)
    truth = generator.integers(0, 4, 50)
    fitted = fit_temperature(logits, truth)
    assert negative_log_likelihood(logits, truth, fitted) <= negative_log_likelihood(logits, truth, other) + 1e-9


@given(arrays(np.float32, st.integers(1, 300), elements=st.floats(0, 1, width=32)), st.floats(0, 1))
def test_at_most_the_share_lies_under_the_threshold(confidence: np.ndarray, share: float) -> None:
    threshold = threshold_for_share(confidence, share)
    assert np.count_nonzero(confidence < threshold) <= share * len(confidence)
    # No larger confidence would do: the next one up would let more than the share through.
    larger = confidence[confidence > threshold]
    if len(larger):
        assert np.count_nonzero(confidence < larger.min()) > share * len(confidence) - 1
