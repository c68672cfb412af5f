"""The form that all benchmarks share, so that their figures can be compared and trusted.

- `--json` prints one object `{"name", "figures": {key: number}, "setting": {...}}`; without it, a table.
- `--quick` asks for less work: under 50 s on two cores.
- Candidates are run by turns (a b, b a, a b, ...), each in a process of its own, because a machine's speed drifts by
  more than what is measured; the verdict is the median of the ratios within a turn.
- Beside the rate by the wall clock stands the rate by the second of CPU of the process measured: the broker shares
  the cores, so the first says what a user sees and the second what our code costs.
"""

import argparse
import gzip
import logging
import os
import platform
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
import structlog
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from pipelines.errors import TidegateError

T = TypeVar("T")

IDX_HEADER_BYTES = 16


class Report(msgspec.Struct, frozen=True):
    """What a benchmark found. Keys carry their unit; `setting` is what one needs to run it again."""

    name: str
    figures: dict[str, float]
    setting: dict[str, Any]


class Timed(msgspec.Struct, frozen=True):
    """One run of one candidate, from its first item to its last one committed."""

    items: int
    wall_s: float
    cpu_s: float
    """Of the candidate's process, all threads."""
    digest: str = ""
    """Of what it produced, for candidates that must produce the same."""

    @property
    def per_s(self) -> float:
        """Items a second by the wall clock."""
        return self.items / self.wall_s

    @property
    def per_cpu_s(self) -> float:
        """Items a second of CPU."""
        return self.items / self.cpu_s


def main(name: str, question: str, measure: Callable[[bool], Report]) -> None:
    """Parse the command line, call `measure(quick)` and print its report."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=question)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="less work: under 50 s")
    given = parser.parse_args()
    _keep_stdout_clean()
    try:
        report = measure(given.quick)
    except TidegateError as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(error.exit_code) from None
    if given.json:
        print(msgspec.json.encode(report).decode())
        return
    table = Table("figure", "")
    for key, value in report.figures.items():
        table.add_row(key, f"{value:,.3f}" if abs(value) < 100 else f"{value:,.0f}")
    console = Console()
    console.print(f"{name}: {question}", highlight=False)
    console.print(table)
    console.print(", ".join(f"{key} {value}" for key, value in report.setting.items()), highlight=False)


def say(line: str) -> None:
    """Progress, on stderr: stdout is for the report."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def in_child(function: Callable[..., T], *arguments: Any) -> T:
    """`function(*arguments)` in a fresh process of its own; both must be importable and picklable."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_keep_stdout_clean) as pool:
        return pool.submit(function, *arguments).result()


def by_turns(rounds: int, candidates: Mapping[str, Callable[[int], T]]) -> dict[str, list[T]]:
    """Each candidate's results for rounds 0 to `rounds` - 1; every other round runs them in reverse order."""
    found: dict[str, list[T]] = {name: [] for name in candidates}
    for turn in range(rounds):
        for name in list(candidates)[:: -1 if turn % 2 else 1]:
            result = candidates[name](turn)
            say(f"round {turn + 1} of {rounds}, {name}: {_shown(result)}")
            found[name].append(result)
    return found


def median_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Median of ours[i] / theirs[i]."""
    return statistics.median(mine / other for mine, other in zip(ours, theirs, strict=True))


def machine() -> dict[str, Any]:
    """What belongs into every `setting`."""
    return {"cores": os.cpu_count(), "python": platform.python_version(), "machine": platform.machine()}


def digit_frames(count: int) -> tuple[NDArray[np.uint8], str]:
    """`count` frames, uint8 [count, 28, 28], and what they are.

    MNIST's test images, over and over, where TIDEGATE_TEST_DATA names a folder that has them; else random strokes.
    """
    archive = Path(os.environ.get("TIDEGATE_TEST_DATA", "")) / "mnist" / "t10k-images-idx3-ubyte.gz"
    if os.environ.get("TIDEGATE_TEST_DATA") and archive.is_file():
        pixels = np.frombuffer(gzip.decompress(archive.read_bytes()), np.uint8, offset=IDX_HEADER_BYTES)
        frames, what = pixels.reshape(-1, 28, 28), "MNIST test images"
    else:
        frames, what = _strokes(1000), "random strokes"
    return frames[np.arange(count) % len(frames)], what


def _strokes(count: int) -> NDArray[np.uint8]:
    """Dark but for a few bright, soft strokes, as digits are. A model's time does not depend on more."""
    import cv2

    generator = np.random.default_rng(28)
    frames = np.zeros((count, 28, 28), np.uint8)
    for frame in frames:
        corners = generator.integers(5, 23, (4, 1, 2)).astype(np.int32)
        cv2.polylines(frame, [corners], isClosed=False, color=255, thickness=2, lineType=cv2.LINE_AA)
    return frames


def _keep_stdout_clean() -> None:
    """Log lines go to stderr, and only what is wrong."""
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


def _shown(result: object) -> str:
    if isinstance(result, Timed):
        return f"{result.per_s:,.0f} a second, {result.per_cpu_s:,.0f} a second of CPU"
    return "done"
