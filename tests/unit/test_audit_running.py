"""The audit of a pipeline that runs on while it is read, on a log that ends transactions partition by partition.

`World` is a log with transactions as Kafka has them: a transaction's records are in their partitions before it ends,
it ends on one partition after the other (group commits are one of them), and a read_committed reader sees a partition
up to the first record whose transaction has not ended there. Producers, edge workers and settlers move in it whenever
the auditor asks it anything.
"""

import threading
from collections import Counter
from random import Random

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pipelines.core.ledger import Finding, MarkBook
from pipelines.errors import TransportError
from pipelines.observe import audit as audit_module
from pipelines.observe.audit import Auditor, drain
from pipelines.transport.base import Commit
from schemas import headers, wire
from schemas.headers import REASON
from schemas.ledger import Mark, MarkBatch, Outcome
from schemas.positions import StreamPosition
from schemas.topics import SiteTopics

TOPICS = SiteTopics("site")
PARTITIONS = 2
STREAMS = {"cam-0": 0, "cam-1": 1, "cam-2": 0}
NAMES = [TOPICS.items, *TOPICS.uplinks, TOPICS.ledger, TOPICS.positions, TOPICS.dead_letters]
GATED = "gated by the producer"


class Entry(msgspec.Struct):
    """A record in a partition, or the marker that ends a transaction there (no name)."""

    where: tuple[str, int]
    at: int = -1
    transaction: int = -1
    record_key: bytes | None = None
    record_value: bytes | None = None
    record_headers: list | None = None
    marker: bool = False

    def topic(self):
        return self.where[0]

    def partition(self):
        return self.where[1]

    def offset(self):
        return self.at

    def key(self):
        return self.record_key

    def value(self):
        return self.record_value

    def headers(self):
        return self.record_headers


class World:
    """A log, those who write to it, and the `Cluster` that an auditor reads it through."""

    def __init__(self, random, *, compacted=False, speed=4):
        self.random, self.compacted = random, compacted
        self.speed = speed  # Most steps while the auditor asks one thing.
        self.logs = {(name, number): [] for name in NAMES for number in range(PARTITIONS)}
        self.open = {place: set() for place in self.logs}  # Transactions that have not ended there.
        self.commits = {TOPICS.edge_group: {}, TOPICS.settler_group: {}}
        self.ends = {}  # By writer: what is left to do to end its transaction.
        self.transactions = 0
        self.next_seq = dict.fromkeys(STREAMS, (0, 0))
        self.captured = 0
        self.truth = {}  # Item to outcome, once it is decided.
        self.held = {number: {} for number in range(PARTITIONS)}  # By the settler: uplink record to whether settled.
        self.moving = True

    # What writers do.

    def write(self, writer, entries, commits=None):
        """Begin a transaction: its records are in the logs; that it has ended gets about later, piece by piece."""
        self.transactions += 1
        places = {entry.where for entry in entries}
        for entry in entries:
            entry.at, entry.transaction = len(self.logs[entry.where]), self.transactions
            self.logs[entry.where].append(entry)
        for place in places:
            self.open[place].add(self.transactions)
        self.ends[writer] = [(self.transactions, place) for place in sorted(places)]
        for group, offsets in (commits or {}).items():
            self.ends[writer] += [(group, offsets)]
        self.random.shuffle(self.ends[writer])

    def end_a_piece(self, writer):
        what, where = self.ends[writer].pop()
        if isinstance(what, str):
            self.commits[what].update(where)
        else:
            self.open[where].discard(what)
            self.logs[where].append(Entry(where, at=len(self.logs[where]), marker=True))

    def move(self):
        writers = [*STREAMS, *(("edge", n) for n in range(PARTITIONS)), *(("settler", n) for n in range(PARTITIONS))]
        writer = self.random.choice(writers)
        if self.ends.get(writer):
            self.end_a_piece(writer)
        elif writer in STREAMS:
            self.capture(writer)
        elif writer[0] == "edge":
            self.infer(writer)
        else:
            self.settle(writer)

    def capture(self, stream):
        number = STREAMS[stream]
        epoch, seq = self.next_seq[stream]
        if not self.random.randrange(12) and seq:
            epoch, seq = epoch + 1, 0
        entries, book = [], MarkBook()
        for _ in range(self.random.randint(1, 3)):
            count = self.random.randint(1, 3)
            if self.random.randrange(3):
                entries.append(self.carrying(TOPICS.items, number, stream, epoch, seq, count))
            else:
                self.decide(book, stream, epoch, seq, count, Outcome.GATED)
            seq += count
            self.captured += count
        self.next_seq[stream] = (epoch, seq)
        position = wire.encode(StreamPosition(epoch, seq))
        entries.append(Entry((TOPICS.positions, number), record_key=stream.encode(), record_value=position))
        self.write(stream, entries + self.marking(number, book))

    def infer(self, writer):
        number, entries, book = writer[1], [], MarkBook()
        taken = self.unread(TOPICS.edge_group, TOPICS.items, number)[: self.random.randint(1, 3)]
        for record in taken:
            header = headers.find(record.headers())
            item = (header.stream, header.epoch, header.first_seq, header.count)
            if self.random.randrange(2):
                uplink = TOPICS.uplink(self.random.randrange(2))
                entries.append(self.carrying(uplink, number, *item))
            else:
                self.decide(book, *item, self.random.choice([Outcome.ANSWERED_EDGE, Outcome.DEAD_LETTERED]))
        if taken:
            commit = {(TOPICS.items, number): Commit(taken[-1].offset() + 1)}
            self.write(writer, entries + self.marking(number, book), {TOPICS.edge_group: commit})

    def settle(self, writer):
        """Settle some records in any order; the commit stands at the oldest that is not settled."""
        number, book, held = writer[1], MarkBook(), self.held[writer[1]]
        for topic in TOPICS.uplinks:
            for record in self.unread(TOPICS.settler_group, topic, number):
                held.setdefault((topic, record.offset()), (record, False))
        waiting = [key for key, (_, settled) in sorted(held.items()) if not settled]
        chosen = self.random.sample(waiting, min(len(waiting), self.random.randint(1, 3)))
        for key in chosen:
            record = held[key][0]
            held[key] = (record, True)
            header = headers.find(record.headers())
            item = (header.stream, header.epoch, header.first_seq, header.count)
            self.decide(book, *item, self.random.choice([Outcome.ANSWERED_CLOUD, Outcome.EXPIRED]))
        commit = {}
        for topic in {topic for topic, _ in chosen}:
            offsets = sorted(offset for name, offset in held if name == topic)
            left = [offset for offset in offsets if not held[topic, offset][1]]
            commit[topic, number] = Commit(left[0] if left else offsets[-1] + 1)
        if chosen:
            self.write(writer, self.marking(number, book), {TOPICS.settler_group: commit})

    def unread(self, group, topic, number):
        committed = self.commits[group].get((topic, number), Commit(0)).offset
        return [record for record in self.visible((topic, number)) if record.offset() >= committed]

    def carrying(self, topic, number, stream, epoch, seq, count):
        header = headers.Header(headers.VERSION, stream, epoch, seq, count, 0, 0, 0, "raw")
        return Entry((topic, number), record_key=stream.encode(), record_headers=headers.pair("image/x", header))

    def decide(self, book, stream, epoch, seq, count, outcome):
        book.add(stream, epoch, seq, count, outcome)
        for one in range(seq, seq + count):
            assert (stream, epoch, one) not in self.truth
            self.truth[stream, epoch, one] = outcome

    def marking(self, number, book):
        marks = book.marks()
        return [self.ledger_record(number, marks)] if marks else []

    def ledger_record(self, number, marks):
        value = wire.encode(MarkBatch(wire.VERSION, "site", marks))
        return Entry((TOPICS.ledger, number), record_value=value)

    def put(self, entry):
        """Write one record as somebody else might, visible at once."""
        self.write("tester", [entry])
        while self.ends["tester"]:
            self.end_a_piece("tester")

    def come_to_rest(self):
        """Let all that was captured be settled; nothing new is captured."""
        for writer in self.ends:
            while self.ends[writer]:
                self.end_a_piece(writer)
        for act, role in ((self.infer, "edge"), (self.settle, "settler")):
            for number in range(PARTITIONS):
                while True:
                    begun = self.transactions
                    act((role, number))
                    while self.ends.get((role, number)):
                        self.end_a_piece((role, number))
                    if begun == self.transactions:
                        break
        self.moving = False

    # What the auditor asks.

    def meanwhile(self):
        if self.moving:
            for _ in range(self.random.randint(0, self.speed)):
                self.move()

    def last_stable(self, place):
        return next((e.at for e in self.logs[place] if e.transaction in self.open[place]), len(self.logs[place]))

    def visible(self, place):
        return [entry for entry in self.logs[place][: self.last_stable(place)] if not entry.marker]

    def places(self, names):
        return [(name, number) for name in names for number in range(PARTITIONS)]

    def end_offsets(self, names, *, stable=True):
        self.meanwhile()
        return {p: self.last_stable(p) if stable else len(self.logs[p]) for p in self.places(names)}

    def start_offsets(self, names):
        self.meanwhile()
        return dict.fromkeys(self.places(names), 0)

    def committed(self, group, names):
        self.meanwhile()
        return {place: commit for place, commit in self.commits[group].items() if place[0] in names}

    def read_all(self, names, starts=None):
        self.meanwhile()
        ends = {place: self.last_stable(place) for place in self.places(names)}
        records = [e for p in ends for e in self.visible(p) if (starts or {}).get(p, 0) <= e.at < ends[p]]
        if self.compacted and names == [TOPICS.positions]:
            records = list({entry.key(): entry for entry in records}.values())
        for record in records:
            self.meanwhile()
            yield record


class Ticking(threading.Event):
    """Waiting lets the world move on."""

    def __init__(self, world):
        super().__init__()
        self.world = world

    def wait(self, timeout=None):
        for _ in range(20 if self.world.moving else 0):
            self.world.move()
        return self.is_set()


# Seeds and not hypothesis' own random: a look draws thousands of numbers.
seeds = st.integers(0, 2**32)


@given(seeds, st.booleans(), st.integers(0, 60), st.sampled_from([0, 1, 4]))
def test_a_running_pipeline_never_gives_a_false_alarm(seed, compacted, lead, speed):
    world = World(Random(seed), compacted=compacted, speed=speed)
    for _ in range(lead):
        world.move()
    auditor = Auditor(world, "site", Ticking(world))

    for _ in range(3):
        captured = world.captured
        verdict = auditor.look()
        assert captured <= verdict.captured <= world.captured
        assert (verdict.lost, verdict.doubled, verdict.beyond) == ([], [], [])
        assert verdict.captured == sum(verdict.outcomes.values()) + verdict.in_flight_items
    world.come_to_rest()
    verdict = auditor.look()

    assert verdict.balanced
    assert verdict.in_flight_items == 0
    assert verdict.captured == world.captured == len(world.truth)
    assert {k: n for k, n in verdict.outcomes.items() if n} == Counter(o.value for o in world.truth.values())
    assert Auditor(world, "site", Ticking(world)).look() == verdict


@given(seeds)
def test_a_fault_in_the_log_is_named_exactly(seed):
    world = World(Random(seed))
    for _ in range(80):
        world.move()
    world.come_to_rest()
    assume(world.truth)
    stream, epoch, seq = world.random.choice(sorted(world.truth))
    past = world.next_seq["cam-1"]
    world.put(world.ledger_record(1, [Mark(stream, epoch, seq, seq, Outcome.SHED)]))
    world.put(world.ledger_record(1, [Mark("cam-1", past[0], past[1] + 2, past[1] + 5, Outcome.GATED)]))
    verdict = Auditor(world, "site", Ticking(world)).look()

    both = tuple(sorted(("shed", world.truth[stream, epoch, seq].value)))
    assert verdict.doubled == [Finding(stream, epoch, seq, seq, both)]
    assert verdict.beyond == [Finding("cam-1", past[0], past[1] + 2, past[1] + 5, ("gated",))]
    assert not verdict.lost
    assert not verdict.balanced


@pytest.fixture
def quiet():
    world = World(Random(7))
    for _ in range(400):
        world.move()
    world.come_to_rest()
    return world


def test_a_lost_mark_is_named(quiet):
    place = next(place for place in quiet.places([TOPICS.ledger]) if quiet.visible(place))
    gone = quiet.visible(place)[0]
    marks = wire.decode_marks(gone.value()).marks
    gone.record_value = wire.encode(MarkBatch(wire.VERSION, "site", []))
    verdict = Auditor(quiet, "site").look()

    seqs = {(m.stream, m.epoch, seq) for m in marks for seq in range(m.first_seq, m.last_seq + 1)}
    named = {(f.stream, f.epoch, seq) for f in verdict.lost for seq in range(f.first_seq, f.last_seq + 1)}
    assert named == seqs
    assert not verdict.balanced


def test_records_that_are_not_ours_are_counted_apart(quiet):
    before = Auditor(quiet, "site").look()
    for name in (TOPICS.items, TOPICS.uplink(1), TOPICS.ledger, TOPICS.positions):
        quiet.put(Entry((name, 0), record_key=b"x", record_value=b"{not ours"))
    quiet.put(Entry((TOPICS.dead_letters, 0), record_value=b"?", record_headers=[(REASON, b"foreign")]))
    quiet.put(Entry((TOPICS.dead_letters, 0), record_value=b"?", record_headers=[(REASON, b"undecodable")]))
    impossible = Mark("cam-0", 0, 5, 2, Outcome.GATED)
    quiet.put(quiet.ledger_record(0, [impossible]))
    auditor = Auditor(quiet, "site")

    for _ in range(2):
        after = auditor.look()
        assert {name: count for name, count in after.foreign.items() if count} == {
            TOPICS.items: 1,
            TOPICS.uplink(1): 1,
            TOPICS.ledger: 2,
            TOPICS.positions: 1,
            TOPICS.dead_letters: 1,
        }
        assert msgspec.structs.replace(after, foreign=before.foreign) == before


def test_a_record_of_a_later_version_is_in_flight_all_the_same(quiet):
    epoch, seq = quiet.next_seq["cam-1"]
    later = headers.Header(headers.VERSION + 1, "cam-1", epoch, seq, 2, 0, 0, 0, "raw")
    quiet.put(Entry((TOPICS.items, 1), record_headers=headers.pair("image/x", later)))
    position = wire.encode(StreamPosition(epoch, seq + 2))
    quiet.put(Entry((TOPICS.positions, 1), record_key=b"cam-1", record_value=position))

    verdict = Auditor(quiet, "site").look()

    assert verdict.balanced
    assert verdict.in_flight == {TOPICS.items: 2, **dict.fromkeys(TOPICS.uplinks, 0)}


def test_a_transaction_that_never_ends_is_an_error_not_a_verdict(quiet, monkeypatch):
    quiet.capture("cam-0")
    monkeypatch.setattr(audit_module, "DECIDED_S", -1.0)

    with pytest.raises(TransportError, match="has not ended: audit again"):
        Auditor(quiet, "site").look()


def test_drain_looks_until_nothing_is_in_flight(quiet):
    quiet.capture("cam-0")
    while quiet.ends["cam-0"]:
        quiet.end_a_piece("cam-0")
    seen = []

    def settle_after_the_first_look(verdict):
        seen.append(verdict.in_flight_items)
        quiet.come_to_rest()

    verdict = drain(quiet, "site", 60.0, Ticking(quiet), settle_after_the_first_look)

    assert verdict.balanced
    assert verdict.in_flight_items == 0
    assert len(seen) == 2
    assert seen[0] > 0


def test_drain_ends_with_its_time_or_when_it_is_stopped(quiet):
    quiet.capture("cam-0")
    while quiet.ends["cam-0"]:
        quiet.end_a_piece("cam-0")
    stop = Ticking(quiet)
    out_of_time = drain(quiet, "site", 0.0, stop)
    stop.set()
    stopped = drain(quiet, "site", 60.0, stop)

    assert out_of_time == stopped
    assert stopped.in_flight_items > 0
    assert stopped.balanced
