"""Of lives that start under one transactional id the last to claim it goes on: in every order of their steps.

The cluster is in memory and fences as Kafka's coordinator does. Every call of it is a step: lives are threads of which
one runs at a time, and the test says which.
"""

import threading
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.errors import BrokerError, Fenced, ForeignRecord, TakenOver
from pipelines.runtime.ownership import GIVES_WAY, Ownership
from pipelines.transport.base import Aborted, OutRecord
from schemas import wire
from schemas.positions import Owner, owner_id

ID, TOPIC, KEY = "producer.site-1.0", "site-1.control", b"producer.0"
STEPS_MOST = 2_000
FATES = ["done", "done, and nobody knows", "refused"]


class Log:
    """What all lives share: records, and who holds which id."""

    def __init__(self, fates=()):
        self.records = []
        self.epochs = Counter()
        self.fates = iter(fates)
        self.starts = []
        """Instances, as they started under `ID`, with the end of the log."""

    def claims(self):
        return [wire.decode_owner(record.value).instance for record in self.records if record.key == KEY]


class Stored:
    """A record as read."""

    def __init__(self, out, offset):
        self.key, self.value, self.offset = (lambda: out.key), (lambda: out.value), (lambda: offset)


class View:
    """A life's own connection to the log. `step` is called before everything that is asked of it."""

    def __init__(self, log, instance, step=lambda: None):
        self.log, self.instance, self.step = log, instance, step

    def transactions(self, transactional_id, compression="zstd"):
        return Writer(self, transactional_id)

    def end_offsets(self, topics, *, stable=True):
        self.step()
        assert (topics, stable) == ([TOPIC], False)
        return {(TOPIC, 0): len(self.log.records)}

    def read_all(self, topics, starts):
        self.step()
        first = starts[TOPIC, 0]
        return [Stored(out, first + number) for number, out in enumerate(self.log.records[first:])]


class Writer:
    def __init__(self, view, transactional_id):
        self.view, self.log, self.id, self.epoch = view, view.log, transactional_id, None

    def start(self):
        self.view.step()
        if self.epoch is None:
            self.log.epochs[self.id] += 1
            self.epoch = self.log.epochs[self.id]
            if self.id == ID:
                self.log.starts.append((self.view.instance, len(self.log.records)))

    def write(self, records):
        self.view.step()
        if self.epoch != self.log.epochs[self.id]:
            self.epoch = None
            raise Fenced("somebody started")
        fate = next(self.log.fates, "done") if self.id == owner_id(ID) else "done"
        if fate != "refused":
            self.log.records += records
        if fate != "done":
            self.epoch = None
            raise Aborted(fate)

    def close(self):
        self.epoch = None


def ownership(view):
    return Ownership(view, ID, TOPIC, KEY, view.instance)


class Over(Exception):
    """The test is."""


class Life(threading.Thread):
    """Works without end under `ID`, as producer and forwarder do, one step whenever `go` says so."""

    def __init__(self, log, instance):
        super().__init__(daemon=True)
        self.log, self.instance = log, instance
        self.over = self.given_up = False
        self._may, self._did = threading.Semaphore(0), threading.Semaphore(0)
        self.start()
        self._did.acquire()

    def go(self):
        """Make one step, and come to the next."""
        self._may.release()
        self._did.acquire()

    def end(self):
        self.given_up = True
        self.go()
        self.join()

    def _step(self):
        self._did.release()
        self._may.acquire()
        if self.given_up:
            raise Over

    def run(self):
        view = View(self.log, self.instance, self._step)
        own, writer = ownership(view), view.transactions(ID)
        try:
            while True:
                try:
                    own.ensure()
                    writer.start()
                    while True:
                        writer.write([OutRecord("work", self.instance.encode())])
                except (TakenOver, Over):
                    return
                except (Fenced, Aborted):
                    continue
        finally:
            self.over = True
            self._did.release()


@given(
    order=st.lists(st.integers(0, 2), max_size=60),
    count=st.integers(2, 3),
    fates=st.lists(st.sampled_from(FATES), max_size=6),
)
def test_the_last_to_claim_goes_on_and_all_others_end_whatever_the_order(order, count, fates):
    log = Log(fates)
    lives = [Life(log, f"life-{number}") for number in range(count)]
    try:
        for number in order:
            if number < count and not lives[number].over:
                lives[number].go()
        for _ in range(STEPS_MOST):
            going_on = [life for life in lives if not life.over]
            if len(going_on) == 1 and log.records[-1].value == going_on[0].instance.encode():
                break
            for life in going_on:
                if not life.over:
                    life.go()
        claims = log.claims()
        assert [life.instance for life in going_on] == [claims[-1]]
        assert max(Counter(claims).values()) == 1
        last_claim = max(offset for offset, record in enumerate(log.records) if record.key == KEY)
        again = Counter(instance for instance, at in log.starts if at > last_claim and instance != claims[-1])
        assert not again or max(again.values()) == 1, "fenced once more than a look allows"
    finally:
        for life in lives:
            if not life.over:
                life.end()


def interrupted(view, call, fault):
    """`view`, where the next call of that name has `fault` done to it."""
    was = getattr(view, call)

    def once(*given, **named):
        setattr(view, call, was)
        return fault(lambda: was(*given, **named))

    setattr(view, call, once)
    return view


def fail(call):
    raise BrokerError("away")


def test_a_slow_claimer_ends_where_a_newer_life_has_claimed_meanwhile():
    log = Log()
    newer = ownership(View(log, "newer"))

    def after_the_newer(call):
        ends = call()
        newer.ensure()
        return ends

    slow = ownership(interrupted(View(log, "slow"), "end_offsets", after_the_newer))
    with pytest.raises(Fenced) as raised:
        slow.ensure()
    assert not isinstance(raised.value, TakenOver)
    with pytest.raises(TakenOver, match=r"'producer\.site-1\.0': 'newer' took over from 'slow'"):
        slow.ensure()
    assert log.claims() == ["newer"]
    newer.ensure()


@pytest.mark.parametrize("comes", [True, False])
def test_a_claimer_that_was_fenced_gives_way_to_a_claim_that_is_on_its_way_but_not_for_ever(comes):
    log = Log()
    newer = View(log, "newer").transactions(owner_id(ID))

    def begin_the_newer(call):
        newer.start()
        return call()

    older = ownership(interrupted(View(log, "older"), "end_offsets", begin_the_newer))
    for _ in range(1 + GIVES_WAY):
        with pytest.raises(Fenced):
            older.ensure()
    if comes:
        newer.write([OutRecord(TOPIC, wire.encode(Owner("newer", 1)), KEY)])
        with pytest.raises(TakenOver):
            older.ensure()
    else:
        older.ensure()
        with pytest.raises(Fenced):
            newer.write([OutRecord(TOPIC, wire.encode(Owner("newer", 1)), KEY)])
    assert log.claims() == ["newer" if comes else "older"]


def test_claims_of_earlier_lives_do_not_keep_a_try_from_being_made_again():
    log = Log(["done", "refused"])
    ownership(View(log, "earlier")).ensure()
    own = ownership(View(log, "later"))
    with pytest.raises(Aborted):
        own.ensure()
    own.ensure()
    own.ensure()
    assert log.claims() == ["earlier", "later"]


@pytest.mark.parametrize("later", [False, True])
def test_a_claim_of_unknown_end_is_not_made_twice(later):
    log = Log(["done, and nobody knows"])
    own = ownership(View(log, "one"))
    with pytest.raises(Aborted):
        own.ensure()
    if later:
        ownership(View(log, "two")).ensure()
        with pytest.raises(TakenOver):
            own.ensure()
    else:
        own.ensure()
    assert log.claims() == ["one", "two"][: 1 + later]


def test_a_claim_that_cannot_be_made_is_tried_again_whatever_failed():
    for call in ("end_offsets", "transactions"):
        log = Log()
        own = ownership(interrupted(View(log, "one"), call, fail))
        with pytest.raises(BrokerError):
            own.ensure()
        own.ensure()
        assert log.claims() == ["one"]


def test_a_look_that_fails_is_no_answer():
    log = Log()
    view = View(log, "one")
    own = ownership(view)
    own.ensure()
    interrupted(view, "read_all", fail)
    with pytest.raises(BrokerError):
        own.ensure()
    own.ensure()
    assert log.epochs[owner_id(ID)] == 1, "a look starts nothing"
    ownership(View(log, "two")).ensure()
    with pytest.raises(TakenOver):
        own.ensure()


@pytest.mark.parametrize("value", [b"{", b"", None])
def test_what_is_no_claim_changes_nothing(value):
    log = Log()
    own = ownership(View(log, "one"))
    own.ensure()
    log.records.append(OutRecord(TOPIC, value, KEY))
    log.records.append(OutRecord(TOPIC, wire.encode(Owner("other", 1)), b"producer.1"))
    with pytest.raises(ForeignRecord):
        wire.decode_owner(value)
    own.ensure()
