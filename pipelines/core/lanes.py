"""What the next transaction of a forwarder carries: by priority, within a budget, and with a floor for every lane.

Pure. A forwarder fills one bounded buffer a lane; `choose` says how many records to take from the front of each.
Strict priority alone would let a busy p0 starve the results (and with them the windows), so every lane with something
to send may first take its floor, an equal part of `FLOOR_SHARE` of the budget; what is left goes by priority.
"""

from collections.abc import Sequence

FLOOR_SHARE = 0.2
"""Of the budget, shared equally by the lanes. With four lanes and 4 MiB a transaction: 210 kB each at the least."""


def choose(sizes_bytes: Sequence[Sequence[int]], budget_bytes: int) -> list[int]:
    """How many records to take from the front of each lane; lanes come first priority first.

    Takes at least one record in all where there is one, however large, so that no record can block its lane for good.
    Otherwise the sizes taken sum to at most `budget_bytes`.
    """
    floor_bytes = int(budget_bytes * FLOOR_SHARE / max(len(sizes_bytes), 1))
    taken = [0] * len(sizes_bytes)
    left_bytes = budget_bytes
    for cap_bytes in (floor_bytes, budget_bytes):
        for lane, sizes in enumerate(sizes_bytes):
            used_bytes = 0
            while taken[lane] < len(sizes):
                size = sizes[taken[lane]]
                if used_bytes + size > cap_bytes or size > left_bytes:
                    break
                used_bytes += size
                left_bytes -= size
                taken[lane] += 1
    if not any(taken):
        for lane, sizes in enumerate(sizes_bytes):
            if sizes:
                taken[lane] = 1
                break
    return taken
