"""Marks, ranges and the account, each against a count that goes seq by seq."""

from collections import Counter, defaultdict
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from pipelines.core.ledger import Evidence, Finding, MarkBook, account
from pipelines.core.ranges import above, below, minus, shared, size, union
from schemas.ledger import Mark, Outcome

SEQS = 24
OUTCOMES = [Outcome.ANSWERED_EDGE, Outcome.ANSWERED_CLOUD, Outcome.SHED, Outcome.DEAD_LETTERED]

spans = st.tuples(st.integers(0, SEQS), st.integers(1, 8)).map(lambda span: (span[0], span[0] + span[1]))
labelled = st.tuples(spans, st.sampled_from("abc")).map(lambda pair: (*pair[0], pair[1]))


def seqs(ranges):
    return Counter(seq for first, end, *_ in ranges for seq in range(first, end))


def is_set(ranges):
    return all(before[1] < after[0] for before, after in pairwise(ranges))


@given(st.lists(spans), st.lists(spans))
def test_a_difference_holds_what_is_in_the_first_only(whole, taken):
    left = minus(union(whole), union(taken))

    assert is_set(left)
    assert set(seqs(left)) == set(seqs(whole)) - set(seqs(taken))
    assert size(left) == len(seqs(left))


@given(st.lists(labelled), st.integers(1, 3))
def test_shared_names_each_seq_under_the_labels_it_has(ranges, times):
    labels = defaultdict(list)
    for first, end, label in ranges:
        for seq in range(first, end):
            labels[seq].append(label)
    expected = {seq: tuple(sorted(found)) for seq, found in labels.items() if len(found) >= times}

    found = shared(ranges, times)

    assert {seq: key for key, pieces in found.items() for seq in seqs(pieces)} == expected
    assert all(is_set(pieces) for pieces in found.values())


@given(st.lists(labelled), st.integers(0, SEQS))
def test_below_and_above_part_ranges_without_loss(ranges, at):
    low, high = seqs(below(ranges, at)), seqs(above(ranges, at))

    assert low + high == seqs(ranges)
    assert all(seq < at for seq in low)
    assert all(seq >= at for seq in high)


added = st.tuples(
    st.sampled_from(["cam-1", "cam-2"]),
    st.integers(0, 1),
    st.integers(0, SEQS),
    st.integers(1, 4),
    st.sampled_from(OUTCOMES),
    st.sampled_from(["", "policy", "undecodable"]),
)


@given(st.lists(added, max_size=40))
def test_a_book_gives_back_what_was_added_in_few_sorted_marks(adds):
    book = MarkBook()
    for add in adds:
        book.add(*add)
    marks = book.marks()

    def items(stream, epoch, first, count, outcome, reason):
        return [(stream, epoch, seq, outcome, reason) for seq in range(first, first + count)]

    given_back = [
        item
        for m in marks
        for item in items(m.stream, m.epoch, m.first_seq, m.last_seq - m.first_seq + 1, m.outcome, m.reason)
    ]
    assert sorted(given_back) == sorted(item for add in adds for item in items(*add))
    assert [(m.stream, m.epoch, m.first_seq) for m in marks] == sorted((m.stream, m.epoch, m.first_seq) for m in marks)


@given(st.permutations(range(SEQS)))
def test_a_book_merges_adjacent_seqs_whatever_their_order(order):
    book = MarkBook()
    for seq in order:
        book.add("cam", 3, seq, 1, Outcome.SHED, "policy")

    assert book.marks() == [Mark("cam", 3, 0, SEQS - 1, Outcome.SHED, "policy")]


# The account. One stream's epoch is a list of what is seen of each seq: any number of marks and records.
STAGES = [["items"], ["uplink.p0", "uplink.p1"]]
TOPICS = [topic for stage in STAGES for topic in stage]
sights = st.lists(st.sampled_from([*OUTCOMES, *TOPICS]), max_size=3)
fine = st.sampled_from([*OUTCOMES, *TOPICS]).map(lambda sight: [sight])
epochs = st.lists(st.one_of(fine, fine, fine, sights), max_size=SEQS)
histories = st.dictionaries(st.tuples(st.sampled_from(["cam-1", "cam-2"]), st.integers(0, 2)), epochs, max_size=4)


def evidence_of(history, before, after):
    marks, stages = MarkBook(), [{topic: [] for topic in stage} for stage in STAGES]
    for (stream, epoch), seen in history.items():
        for seq, sights in enumerate(seen):
            for sight in sights:
                if isinstance(sight, Outcome):
                    marks.add(stream, epoch, seq, 1, sight)
                for stage in stages:
                    if sight in stage:
                        stage[sight].append((stream, epoch, seq, 1))
    return Evidence(before=before, stages=stages, marks=marks.marks(), after=after)


def settled_as(sights):
    """What one seq counts as: the outcomes, topics and findings that it adds to."""
    outcomes = [sight for sight in sights if isinstance(sight, Outcome)]
    if outcomes:
        return outcomes, [], outcomes if len(outcomes) > 1 else []
    for stage in reversed(STAGES):
        topics = [sight for sight in sights if sight in stage]
        if topics:
            return [], sorted(set(topics)), topics if len(topics) > 1 else []
    return [], [], []


def named(findings):
    return {(f.stream, f.epoch, seq): f.seen_as for f in findings for seq in range(f.first_seq, f.last_seq + 1)}


@given(histories, st.data())
def test_the_account_equals_a_count_seq_by_seq(history, data):
    last = {stream: max(e for s, e in history if s == stream) for stream, _ in history}
    ends = {(s, e): data.draw(st.integers(0, SEQS), f"end of {s} {e}") for s, e in history if last[s] == e}
    later = {key: end + data.draw(st.integers(0, 3), f"later end of {key}") for key, end in ends.items()}
    verdict = account(evidence_of(history, ends, later))

    outcomes, in_flight = Counter(), Counter()
    lost, doubled, beyond, captured = {}, {}, {}, 0
    for key, seen in history.items():
        reach = max((seq + 1 for seq, sights in enumerate(seen) if sights), default=0)
        end, ceiling = ends.get(key, reach), later.get(key, reach)
        captured += end
        for seq in range(max(len(seen), end)):
            sights = seen[seq] if seq < len(seen) else []
            if seq < end:
                outcome, topics, twice = settled_as(sights)
                outcomes.update(outcome)
                in_flight.update(topics)
                if twice:
                    doubled[(*key, seq)] = tuple(sorted(twice))
                if not sights:
                    lost[(*key, seq)] = ()
            if seq >= ceiling and sights:
                beyond[(*key, seq)] = tuple(sorted(sights))

    assert verdict.captured == captured
    assert {k: n for k, n in verdict.outcomes.items() if n} == outcomes
    assert {k: n for k, n in verdict.in_flight.items() if n} == in_flight
    assert (named(verdict.lost), named(verdict.doubled), named(verdict.beyond)) == (lost, doubled, beyond)
    assert verdict.balanced == (not lost and not doubled and not beyond)


@given(st.integers(1, SEQS), st.data())
def test_a_planted_fault_is_named_exactly(end, data):
    history = {("cam", 7): [[Outcome.ANSWERED_EDGE] for _ in range(end)]}
    first = data.draw(st.integers(0, end - 1))
    last = data.draw(st.integers(first, end - 1))
    ends = {("cam", 7): end}
    whole = evidence_of(history, ends, ends).marks
    left = evidence_of(
        {("cam", 7): [[] if first <= q <= last else [Outcome.ANSWERED_EDGE] for q in range(end)]}, {}, {}
    )

    def verdict(marks):
        return account(Evidence(before=ends, stages=[{}], marks=marks, after=ends))

    assert verdict(whole).balanced
    assert verdict(left.marks).lost == [Finding("cam", 7, first, last)]
    twice = verdict([*whole, Mark("cam", 7, first, last, Outcome.EXPIRED)])
    assert twice.doubled == [Finding("cam", 7, first, last, ("answered_edge", "expired"))]
    past = verdict([*whole, Mark("cam", 7, end + first, end + last, Outcome.EXPIRED)])
    assert past.beyond == [Finding("cam", 7, end + first, end + last, ("expired",))]


def test_an_earlier_epoch_is_dense_up_to_the_last_seq_seen_of_it():
    marks = [Mark("cam", 1, 0, 4, Outcome.ANSWERED_EDGE), Mark("cam", 1, 7, 9, Outcome.ANSWERED_EDGE)]
    verdict = account(Evidence(before={("cam", 2): 0}, stages=[{}], marks=marks, after={("cam", 2): 0}))

    assert verdict.captured == 10
    assert verdict.lost == [Finding("cam", 1, 5, 6)]


def test_reasons_are_counted_under_their_outcome():
    marks = [Mark("cam", 0, 0, 2, Outcome.SHED, "age"), Mark("cam", 0, 3, 3, Outcome.DEAD_LETTERED, "undecodable")]
    verdict = account(Evidence(before={("cam", 0): 4}, stages=[{}], marks=marks, after={("cam", 0): 4}))

    assert verdict.reasons == {"shed": {"age": 3}, "dead_lettered": {"undecodable": 1}}
    assert verdict.balanced
