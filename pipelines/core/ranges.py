"""Sets of seqs as ranges.

A range is `(first, end)`, half open. A set is a sorted list of ranges that neither overlap nor touch. A labelled range
says besides where the seqs were seen; labelled ranges may overlap, and `shared` finds where they do.
"""

from collections.abc import Iterable, Sequence

Range = tuple[int, int]
Labelled = tuple[int, int, str]


def union(ranges: Iterable[Range | Labelled]) -> list[Range]:
    """The set of all seqs in `ranges`."""
    joined: list[Range] = []
    for first, end, *_ in sorted(ranges):
        if joined and first <= joined[-1][1]:
            if end > joined[-1][1]:
                joined[-1] = (joined[-1][0], end)
        else:
            joined.append((first, end))
    return joined


def minus(whole: Sequence[Range], taken: Sequence[Range]) -> list[Range]:
    """The set of the seqs of the set `whole` that are not in the set `taken`. Linear in both."""
    left: list[Range] = []
    at = 0
    for first, end in whole:
        while at < len(taken) and taken[at][1] <= first:
            at += 1
        ahead = at
        while ahead < len(taken) and taken[ahead][0] < end:
            if first < taken[ahead][0]:
                left.append((first, taken[ahead][0]))
            first = max(first, taken[ahead][1])
            ahead += 1
        # The last one looked at may reach into the next range of `whole`.
        at = max(at, ahead - 1)
        if first < end:
            left.append((first, end))
    return left


def size(ranges: Iterable[Range | Labelled]) -> int:
    """Number of seqs; one that is in several ranges counts in each."""
    return sum(end - first for first, end, *_ in ranges)


def below(ranges: Iterable[Labelled], end: int) -> list[Labelled]:
    """What of the ranges lies below `end`."""
    return [(first, min(last_end, end), label) for first, last_end, label in ranges if first < end]


def above(ranges: Iterable[Labelled], start: int) -> list[Labelled]:
    """What of the ranges lies at or above `start`."""
    return [(max(first, start), end, label) for first, end, label in ranges if end > start]


def shared(ranges: Iterable[Labelled], times: int = 2) -> dict[tuple[str, ...], list[Range]]:
    """Seqs that are in at least `times` of the ranges, as a set for each combination of labels they are under."""
    edges: list[tuple[int, int, str]] = []
    for first, end, label in ranges:
        edges += ((first, 1, label), (end, -1, label))
    edges.sort()
    found: dict[tuple[str, ...], list[Range]] = {}
    here: list[str] = []
    since = 0
    for seq, step, label in edges:
        if seq > since and len(here) >= times:
            found.setdefault(tuple(sorted(here)), []).append((since, seq))
        since = seq
        if step > 0:
            here.append(label)
        else:
            here.remove(label)
    return {labels: union(pieces) for labels, pieces in found.items()}
