"""Windows equal a batch computation, whatever the order, wherever a crash falls, and however few are held."""

from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

import pipelines.core.windows as core
from pipelines.core.windows import WindowBook
from pipelines.errors import ConfigError
from schemas.aggregates import Window
from schemas.ledger import Outcome
from schemas.results import Result

SIZE_US = 10
Key = tuple[str, str, int]


def result(stream: str, label: str, capture_us: int, latency_us: int = 3, confidence: float = 0.5) -> Result:
    settled_us = capture_us + latency_us
    return Result(stream, 1, 0, capture_us, settled_us, Outcome.ANSWERED_EDGE, label, confidence, "m@1", "edge_only")


RESULTS = st.builds(
    result,
    st.sampled_from(["cam-1", "cam-2", "cam-3"]),
    st.sampled_from(["cat", "dog"]),
    st.integers(-50, 150),
    st.integers(-5, 40),
    st.floats(0, 1),
)


def batch(results: list[Result], lateness_us: int) -> dict[Key, tuple[int, int, int, bool]]:
    """Count, sums and `closed` of every window, computed at once."""
    sums: defaultdict[Key, list[int]] = defaultdict(lambda: [0, 0, 0])
    latest: dict[str, int] = {}
    for r in results:
        start_us = r.capture_us - r.capture_us % SIZE_US
        tally = sums[r.stream, r.label, start_us]
        tally[0] += 1
        tally[1] += round(r.confidence * 1_000_000)
        tally[2] += r.settled_us - r.capture_us
        latest[r.stream] = max(r.capture_us, latest.get(r.stream, r.capture_us))
    return {
        key: (count, confidence, latency, latest[key[0]] >= key[2] + SIZE_US + lateness_us)
        for key, (count, confidence, latency) in sums.items()
    }


class Aggregator:
    """A book beside what it wrote: the windows of each transaction, and where its reader goes on."""

    def __init__(self, lateness_us: int, max_windows: int) -> None:
        self.lateness_us, self.max_windows = lateness_us, max_windows
        self.log: list[Window] = []
        self.committed = 0
        self.recalled = 0
        self.crash()

    def crash(self) -> None:
        self.read = self.committed
        self.book = WindowBook("site", SIZE_US, self.lateness_us, self.max_windows)
        for window in self.log:
            self.book.restore(window)
            assert len(self.book) <= self.max_windows

    def take(self, results: list[Result]) -> None:
        evicted = self.book.add(results)
        if evicted:
            self.recalled += 1
            self.book.recall(evicted, self.log)
            assert not self.book.add(results)
        self.read += len(results)

    def emit(self, committed: bool = True) -> None:
        windows = self.book.emit()
        assert len(self.book) <= self.max_windows
        if committed:
            self.log += windows
            self.committed = self.read
        else:
            self.crash()

    def run(self, results: list[Result], chunk: int, whims: list[str]) -> dict[Key, Window]:
        """Take all the results, with crashes and transactions that fail here and there."""
        for whim in whims:
            self.take(results[self.read : self.read + chunk])
            if whim == "crash":
                self.crash()
            elif whim != "go on":
                self.emit(committed=whim == "emit")
        while self.committed < len(results):
            self.take(results[self.read : self.read + chunk])
            self.emit()
        return {(w.stream, w.label, w.start_us): w for w in self.log}


WHIMS = st.lists(st.sampled_from(["go on", "emit", "emit", "crash", "refused"]), max_size=30)


@given(st.lists(RESULTS, max_size=60), st.integers(1, 9), WHIMS, st.integers(0, 25), st.integers(1, 8))
def test_sums_equal_a_batch_however_few_windows_are_held(
    results: list[Result], chunk: int, whims: list[str], lateness_us: int, max_windows: int
) -> None:
    aggregator = Aggregator(lateness_us, max_windows)
    found = aggregator.run(results, chunk, whims)
    expected = batch(results, lateness_us)
    sums = {key: (w.count, w.confidence_ppm_sum, w.latency_us_sum) for key, w in found.items()}
    assert sums == {key: value[:3] for key, value in expected.items()}
    for key, window in found.items():
        assert window.mean_confidence == window.confidence_ppm_sum / window.count / 1e6
        assert window.mean_latency_ms == window.latency_us_sum / window.count / 1e3
        assert not window.closed or expected[key][3]
        revisions = [w.revision for w in aggregator.log if (w.stream, w.label, w.start_us) == key]
        assert revisions == list(range(1, len(revisions) + 1))


@given(st.lists(RESULTS, max_size=60), st.integers(1, 9), WHIMS, st.integers(0, 25))
def test_closed_is_exact_without_a_restart_and_late_by_less_than_a_window_after_one(
    results: list[Result], chunk: int, whims: list[str], lateness_us: int
) -> None:
    calm = Aggregator(lateness_us, max_windows=1000).run(results, chunk, [w for w in whims if w in ("go on", "emit")])
    expected = {key: value[3] for key, value in batch(results, lateness_us).items()}
    assert {key: w.closed for key, w in calm.items()} == expected

    wild = Aggregator(lateness_us, max_windows=1000).run(results, chunk, whims)
    latest = {stream: max(start for s, _, start in expected if s == stream) for stream, _, _ in expected}
    for key, window in wild.items():
        passed_by_latest_start = latest[key[0]] >= key[2] + SIZE_US + lateness_us
        assert passed_by_latest_start <= window.closed <= expected[key]


@given(st.permutations([result("cam", "cat", at, at % 7, at / 100) for at in range(0, 100, 3)]), st.integers(1, 4))
def test_the_order_of_results_is_of_no_account(results: list[Result], max_windows: int) -> None:
    found = Aggregator(0, max_windows).run(results, 5, [])
    assert {key: w.count for key, w in found.items()} == {k: v[0] for k, v in batch(results, 0).items()}


def test_a_late_result_makes_a_new_revision_of_a_closed_window() -> None:
    book = WindowBook("site", SIZE_US, lateness_us=0)
    book.add([result("cam", "cat", 1), result("cam", "cat", 10)])
    first = {w.start_us: w for w in book.emit()}
    assert (first[0].count, first[0].revision, first[0].closed) == (1, 1, True)
    assert not first[10].closed
    book.add([result("cam", "cat", 2)])
    assert [(w.count, w.revision, w.closed) for w in book.emit()] == [(2, 2, True)]
    assert book.emit() == []


def test_another_streams_time_closes_nothing() -> None:
    book = WindowBook("site", SIZE_US, lateness_us=0)
    book.add([result("slow", "cat", 1), result("fast", "cat", 500)])
    assert not any(w.closed for w in book.emit())


def test_an_evicted_window_is_asked_for_and_never_begun_again() -> None:
    aggregator = Aggregator(lateness_us=0, max_windows=2)
    for at in (1, 11, 21, 31):
        aggregator.take([result("cam", "cat", at)])
        aggregator.emit()
    assert len(aggregator.book) == 2
    assert aggregator.book.add([result("cam", "cat", 2), result("cam", "cat", 32)]) == {0}
    aggregator.take([result("cam", "cat", 2)])
    aggregator.emit()
    assert (aggregator.log[-1].start_us, aggregator.log[-1].count, aggregator.log[-1].revision) == (0, 2, 3)
    assert aggregator.recalled == 1


def test_a_class_that_is_new_to_an_evicted_start_begins_at_nothing() -> None:
    aggregator = Aggregator(lateness_us=0, max_windows=1)
    for at in (1, 11, 21):
        aggregator.take([result("cam", "cat", at)])
        aggregator.emit()
    aggregator.take([result("cam", "dog", 2)])
    aggregator.emit()
    last = aggregator.log[-1]
    assert (last.label, last.start_us, last.count, last.revision) == ("dog", 0, 1, 1)


def test_closed_windows_are_evicted_before_open_ones_though_touched_later() -> None:
    book = WindowBook("site", SIZE_US, lateness_us=0, max_windows=2)
    book.add([result("idle", "cat", 1)])
    for at in (11, 21):
        book.add([result("cam", "cat", at)])
        book.emit()
    assert (len(book), book.evicted_open) == (2, 0)
    assert book.add([result("idle", "cat", 2), result("cam", "cat", 12)]) == {10}


def test_open_windows_that_had_to_be_evicted_are_counted() -> None:
    book = WindowBook("site", SIZE_US, lateness_us=100, max_windows=1)
    for at in (1, 11, 21):
        book.add([result("cam", "cat", at)])
        book.emit()
    assert (len(book), book.evicted_open) == (1, 2)


def test_what_was_touched_longest_ago_is_evicted_first() -> None:
    book = WindowBook("site", SIZE_US, lateness_us=0, max_windows=3)
    for at in (1, 11, 21, 2, 31):
        book.add([result("cam", "cat", at)])
        book.emit()
    assert book.add([result("cam", "cat", 3), result("cam", "cat", 12)]) == {10}


def test_a_start_that_does_not_fit_a_restore_is_left_out_whole() -> None:
    aggregator = Aggregator(lateness_us=0, max_windows=2)
    for some in ([(1, "cat"), (1, "dog")], [(11, "cat")], [(21, "cat")], [(2, "cat")]):
        aggregator.take([result("cam", label, at) for at, label in some])
        aggregator.emit()
    aggregator.crash()
    aggregator.take([result("cam", "dog", 3)])
    aggregator.emit()
    assert (aggregator.log[-1].label, aggregator.log[-1].start_us, aggregator.log[-1].count) == ("dog", 0, 2)


def test_what_is_known_of_evicted_starts_is_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core, "MAX_EVICTED_STARTS", 2)
    book = WindowBook("site", SIZE_US, lateness_us=0, max_windows=1)
    for at in (1, 21, 41, 61, 81):
        book.add([result("cam", "cat", at)])
        book.emit()
    assert book.add([result("cam", "cat", at) for at in (2, 11, 22, 42, 62, 51)]) == {0, 10, 20, 40, 60}
    book.recall({0}, [])
    book.add([result("cam", "cat", 2)])
    book.emit()
    assert book.add([result("cam", "cat", 22)]) == {20}


def test_windows_of_another_size_are_refused() -> None:
    book = WindowBook("site", SIZE_US, lateness_us=0)
    book.add([result("cam", "cat", 1)])
    (window,) = book.emit()
    with pytest.raises(ConfigError, match=r"aggregates.*windows\.size"):
        WindowBook("site", SIZE_US * 2, lateness_us=0).restore(window)
    with pytest.raises(ConfigError, match=r"windows\.size"):
        WindowBook("site", 0, lateness_us=0)
