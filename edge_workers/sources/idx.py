"""Images in an idx archive, the format of MNIST, plain or .gz."""

from collections.abc import Iterator
from pathlib import Path

from edge_workers.sources.base import Frame, Split
from pipelines.codecs.idx import read_idx
from pipelines.core.capture import SourcePosition


class IdxArchive:
    """Images [n, h, w] or [n, h, w, c] of one archive. Raises `SourceError`."""

    recorded = False

    def __init__(self, path: Path, *, streams: int = 1, loop: int = 1) -> None:
        self._images = read_idx(path, dimensions=(3, 4))
        self._split = Split(str(path), len(self._images), streams, loop)
        self.streams = self._split.streams

    def frames(self, stream: str, after: SourcePosition | None) -> Iterator[Frame]:
        """Its images behind the position `after`."""
        for position, _, index in self._split.positions(stream, after):
            yield Frame(position, self._images[index])
