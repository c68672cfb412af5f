"""The two networks and how each is trained."""

from collections.abc import Callable

import msgspec
from torch import nn

MEAN, STD = 0.1307, 0.3081
"""Of MNIST's training pixels in 0..1, as everybody uses them; part of the exported graph."""


class Recipe(msgspec.Struct, frozen=True):
    """How a network is trained. `augmented` images are turned, scaled, sheared and moved a little."""

    network: Callable[[], nn.Sequential]
    epochs: int
    batch_items: int
    optimiser: str
    learning_rate: float
    augmented: bool

    def describe(self, epochs: int, seed: int) -> str:
        """The recipe in one sentence."""
        images = "images turned, scaled, sheared and moved a little" if self.augmented else "images as they are"
        return (
            f"{self.optimiser}, learning rate {self.learning_rate}, {epochs} epochs of batches of {self.batch_items}, "
            f"{images}, cross-entropy, seed {seed}"
        )


def simple_cnn() -> nn.Sequential:
    """Conv 1-10-20 of kernel 5, each with 2x2 max-pool and ReLU, then fully connected 320-50-10: 21,840 weights."""
    return nn.Sequential(
        nn.Conv2d(1, 10, 5),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Conv2d(10, 20, 5),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(320, 50),
        nn.ReLU(),
        nn.Linear(50, 10),
    )


def wide_cnn() -> nn.Sequential:
    """Five 3x3 convolutions with batch normalisation, two of stride 2 in place of pooling, and one linear layer."""

    def block(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
        convolution = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        return [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]

    return nn.Sequential(
        *block(1, 24, 1),
        *block(24, 32, 2),
        *block(32, 64, 1),
        *block(64, 96, 2),
        *block(96, 128, 1),
        nn.Flatten(),
        nn.Dropout(0.4),
        nn.Linear(128 * 7 * 7, 10),
    )


RECIPES = {
    "digits-small": Recipe(simple_cnn, 5, 100, "SGD with momentum 0.9 and linear decay", 0.01, augmented=False),
    "digits-large": Recipe(wide_cnn, 8, 100, "AdamW, one cycle", 0.003, augmented=True),
}
