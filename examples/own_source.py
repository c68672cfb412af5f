"""A source of your own: the images of a .npy file. Name it in the pipeline file as `type: own_source:NpyArchive`.

    python examples/own_source.py images.npy

A source says which streams it has and yields their frames; it must be able to go on behind any position it gave.
`Split` does the counting for whatever is a fixed list. Settings of yours come from `source.options`.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from edge_workers.sources.base import Frame, Split
from pipelines.core.capture import SourcePosition
from pipelines.errors import SourceError


class NpyArchive:
    """Images uint8 [n, h, w] or [n, h, w, 3] (RGB); `every` takes only each n-th of them."""

    recorded = False

    def __init__(self, path: Path, *, streams: int = 1, loop: int = 1, every: int = 1) -> None:
        try:
            self._images = np.load(path, mmap_mode="r", allow_pickle=False)[::every]
        except (OSError, ValueError) as error:
            raise SourceError(f"{path} cannot be read ({error})", remedy="give a .npy file of images") from error
        self._split = Split(str(path), len(self._images), streams, loop)
        self.streams = self._split.streams

    def frames(self, stream: str, after: SourcePosition | None) -> Iterator[Frame]:
        """Its images behind the position `after`."""
        for position, _, index in self._split.positions(stream, after):
            yield Frame(position, np.asarray(self._images[index]))


if __name__ == "__main__":
    archive = NpyArchive(Path(sys.argv[1]))
    print(sum(1 for _ in archive.frames("cam-00", None)), "frames")
