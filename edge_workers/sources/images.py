"""A folder of image files, as they are. Sub-folders are part of it; files are taken in the order of their paths."""

from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path

from edge_workers.sources.base import Frame, Split
from pipelines.core.capture import SourcePosition
from pipelines.errors import SourceError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".pgm", ".ppm"})


class ImageFolder:
    """Files of `SUFFIXES` below `path`; hidden ones are passed over.

    Recorded times are the files' modification times, so for a rate `as recorded` names must sort in the order in which
    the files were written; one that is older than the file before it is taken for simultaneous. A loop begins one mean
    interval after the last file. Raises `SourceError`.
    """

    recorded = True

    def __init__(self, path: Path, *, streams: int = 1, loop: int = 1) -> None:
        try:
            if not path.is_dir():
                raise SourceError(f"{path} is not a folder", remedy="correct `source.path`")
            self._files = sorted(_images(path))
            times_us = [file.stat().st_mtime_ns // 1000 for file in self._files]
        except OSError as error:
            raise SourceError(f"{path} cannot be read ({error})", remedy="give read access to all of it") from error
        if not self._files:
            raise SourceError(f"{path} holds no images", remedy=f"put files there: {', '.join(sorted(SUFFIXES))}")
        self._split = Split(str(path), len(self._files), streams, loop)
        self.streams = self._split.streams
        self._times_us = list(accumulate((time_us - times_us[0] for time_us in times_us), max))
        duration_us = self._times_us[-1]
        self._round_us = duration_us + duration_us // max(len(times_us) - 1, 1)

    def frames(self, stream: str, after: SourcePosition | None) -> Iterator[Frame]:
        """Its files behind the position `after`."""
        for position, played, index in self._split.positions(stream, after):
            yield Frame(position, self._files[index], played * self._round_us + self._times_us[index])


def _images(folder: Path) -> Iterator[Path]:
    for file in folder.rglob("*"):
        hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
        if not hidden and file.suffix.lower() in SUFFIXES and file.is_file():
            yield file
