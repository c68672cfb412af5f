"""Training end to end on a slice of MNIST, and that the exported graph says what torch says."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

pytestmark = pytest.mark.train

SLICE = {"train": 10_000, "t10k": 1_000}


@pytest.fixture(scope="session")
def few_digits(test_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first images of each MNIST archive, as archives of the same names."""
    folder = tmp_path_factory.mktemp("few-digits")
    for part, count in SLICE.items():
        for kind, header_bytes, item_bytes in (("images-idx3", 16, 784), ("labels-idx1", 8, 1)):
            name = f"{part}-{kind}-ubyte.gz"
            content = gzip.decompress((test_data / "mnist" / name).read_bytes())
            cut = content[:4] + count.to_bytes(4, "big") + content[8 : header_bytes + count * item_bytes]
            (folder / name).write_bytes(gzip.compress(cut, compresslevel=1))
    return folder


def run_train(data: Path, out: Path, model: str, *options: str) -> dict[str, object]:
    from cloud_workers.train_command import app

    done = CliRunner().invoke(app, ["--data", str(data), "--out", str(out), "--model", model, "--json", *options])
    assert done.exit_code == 0, done.output
    card: dict[str, object] = json.loads(done.stdout)
    return card


@pytest.mark.parametrize(("model", "epochs"), [("digits-small", "4"), ("digits-large", "1")])
def test_a_short_training_gives_a_release_that_has_learnt(
    few_digits: Path, tmp_path: Path, model: str, epochs: str
) -> None:
    from pipelines.models.heads import head_for
    from pipelines.models.onnx import OnnxModel
    from pipelines.models.release import load_release

    card = run_train(few_digits, tmp_path, model, "--epochs", epochs)
    release = load_release(tmp_path / f"{model}.onnx")
    loaded = OnnxModel(release)
    assert release.card.sha256 == card["sha256"]
    assert (tmp_path / f"{model}.md").read_text().startswith(f"# {model}\n")
    assert head_for(release, loaded.classes).labels == tuple("0123456789")
    judged = {seen.on: seen for seen in release.card.accuracy}
    assert judged["MNIST's test images"].items == SLICE["t10k"]
    assert sum(seen.items for seen in release.card.accuracy) < sum(SLICE.values())
    assert min(seen.accuracy for seen in release.card.accuracy) >= 0.8


def test_the_same_seed_gives_the_same_file(few_digits: Path, tmp_path: Path) -> None:
    hashes = [
        run_train(few_digits, tmp_path / name, "digits-small", "--epochs", "1", "--seed", seed)["sha256"]
        for name, seed in (("a", "3"), ("b", "3"), ("c", "4"))
    ]
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.parametrize("name", ["digits-small", "digits-large"])
def test_the_exported_graph_answers_as_torch_does(name: str, tmp_path: Path) -> None:
    import torch

    from cloud_workers.training.export import export
    from cloud_workers.training.learn import normalise
    from cloud_workers.training.networks import RECIPES
    from pipelines.models.onnx import OnnxModel
    from pipelines.models.release import load_release

    torch.manual_seed(1)
    network = RECIPES[name].network()
    images = np.random.default_rng(1).integers(0, 256, (130, 28, 28), np.uint8)
    inputs = normalise(torch.from_numpy(images))
    network.train()
    network(inputs)  # Moves the running statistics of batch normalisation away from what they start with.
    network.eval()
    with torch.no_grad():
        expected = network(inputs).numpy()
    path = tmp_path / "network.onnx"
    path.write_bytes(export(network))
    np.testing.assert_allclose(OnnxModel(load_release(path)).run(images), expected, rtol=1e-4, atol=1e-4)


def test_augmented_images_keep_shape_and_brightness() -> None:
    import torch

    from cloud_workers.training.learn import augment

    torch.manual_seed(2)
    images = torch.zeros(200, 28, 28, dtype=torch.uint8)
    images[:, 10:18, 10:18] = 200
    moved = augment(images)
    assert moved.shape == images.shape
    assert 0 <= float(moved.min()) <= float(moved.max()) <= 200.01
    assert float(moved.sum() / images.sum()) == pytest.approx(1, abs=0.15)
    assert not torch.equal(moved[0], moved[1])


def test_a_layer_that_the_export_does_not_know_is_named() -> None:
    from torch import nn

    from cloud_workers.training.export import export

    with pytest.raises(TypeError, match="layer1 is a Sigmoid"):
        export(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Sigmoid()))
