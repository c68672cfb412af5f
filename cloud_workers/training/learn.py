"""The training loop: one process, one thread, the same weights for the same seed on the same machine."""

from collections.abc import Callable
from math import pi
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from cloud_workers.training.data import Part
from cloud_workers.training.networks import MEAN, STD, Recipe

Report = Callable[[int, float], None]
"""Called after each batch with the number of items learnt from and the loss, in nats."""

TURN_RAD, SCALE, SHEAR, MOVE = 12 * pi / 180, 0.12, 0.15, 0.08
"""Largest change of an augmented image: radians, share of size, shear, share of the width from the centre."""


def normalise(images: Tensor) -> Tensor:
    """uint8 [n, height, width] to float32 [n, 1, height, width], as the exported graph does it."""
    return (images.unsqueeze(1).float() / 255 - MEAN) / STD


def train(recipe: Recipe, part: Part, epochs: int, seed: int, report: Report) -> nn.Sequential:
    """Train the recipe's network on `part` and return it in evaluation mode."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(seed)
    network = recipe.network()
    images, classes = torch.from_numpy(part.images.copy()), torch.from_numpy(part.classes)
    batches = -(-len(images) // recipe.batch_items)
    optimiser, schedule = _optimiser(recipe, network, epochs * batches)
    network.train()
    for _ in range(epochs):
        for chosen in torch.randperm(len(images)).split(recipe.batch_items):
            batch = images[chosen]
            inputs = normalise(augment(batch) if recipe.augmented else batch)
            loss = functional.cross_entropy(network(inputs), classes[chosen])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            report(len(batch), float(loss.detach()))
    return network.eval()


def augment(images: Tensor) -> Tensor:
    """Turn, scale, shear and move each image, uint8 [n, height, width], by a random little; bilinear, black outside."""
    count = len(images)

    def random(limit: float) -> Tensor:
        return (torch.rand(count) * 2 - 1) * limit

    angle, shear = random(TURN_RAD), random(SHEAR)
    size = 1 + torch.stack([random(SCALE), random(SCALE)], dim=1)
    cosine, sine = angle.cos(), angle.sin()
    matrix = torch.stack(
        [
            torch.stack([cosine * size[:, 0], (shear * cosine - sine) * size[:, 1], random(2 * MOVE)], dim=1),
            torch.stack([sine * size[:, 0], (shear * sine + cosine) * size[:, 1], random(2 * MOVE)], dim=1),
        ],
        dim=1,
    )
    grid = functional.affine_grid(matrix, [count, 1, *images.shape[1:]], align_corners=False)
    moved = functional.grid_sample(images.unsqueeze(1).float(), grid, align_corners=False)
    return moved.squeeze(1)


def _optimiser(recipe: Recipe, network: nn.Module, steps: int) -> tuple[Any, Any]:
    if recipe.optimiser.startswith("SGD"):
        sgd = torch.optim.SGD(network.parameters(), lr=recipe.learning_rate, momentum=0.9)
        return sgd, torch.optim.lr_scheduler.LinearLR(sgd, 1.0, 0.0, total_iters=steps)
    adam = torch.optim.AdamW(network.parameters(), lr=recipe.learning_rate, weight_decay=0.05)
    cycle = torch.optim.lr_scheduler.OneCycleLR(adam, max_lr=recipe.learning_rate, total_steps=steps)
    return adam, cycle
