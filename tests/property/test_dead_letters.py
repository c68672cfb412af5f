"""Dead letters: which wait, through any log, filter and crash; what a retry is; what a stranger's text becomes."""

from collections import Counter, defaultdict

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.core.capture import Capture
from pipelines.core.dead_letters import (
    LATER_VERSION,
    NO_ITEM,
    NOT_ENCODED,
    RETRY,
    SETTLED_AT_ITS_SITE,
    SEVERAL,
    DeadLetters,
    Letter,
    Wanted,
    captured_anew,
    hindrance,
    parse_id,
    place,
    refuse_producers,
    retry_stream,
    to_be_decided,
)
from pipelines.core.preview import BYTES_MOST, TEXT_MOST, preview, printable, printable_bytes
from pipelines.errors import ConfigError
from pipelines.runtime.dead_letters import dead_letter, read
from schemas import headers, wire
from schemas.dead_letters import DROPPED, RETRIED, Decided, Disposition
from schemas.headers import DISPOSITION, FROM, REASON, Extra, Header, Origin, Params
from schemas.items import ItemId
from schemas.topics import Tier

TOPIC = "site.dead_letters"
REASONS, STREAMS = ["undecodable", "wrong_shape", "foreign", ""], ["cam-0", "cam-1", "retry/cam-0"]
PARTITIONS = 2

letter_fields = st.tuples(
    st.integers(0, 9),
    st.sampled_from(REASONS),
    st.sampled_from(STREAMS),
    st.integers(0, 2),
    st.booleans(),
)


def letter_at(key, at_us, reason, stream, count, hindered):
    why_not = "no" if hindered or not count else ""
    return Letter(Tier.EDGE, *key, at_us, reason, "from", "image/x", 1, stream, 7, 3, count, why_not)


@st.composite
def logs(draw):
    """A log: letters, and dispositions that name letters before them in their partition, each at most once."""
    log, waiting, ends = [], defaultdict(list), Counter()
    for _ in range(draw(st.integers(0, 25))):
        number = draw(st.integers(0, PARTITIONS - 1))
        offset = ends[number] = ends[number] + draw(st.integers(1, 3))  # Markers of transactions take offsets.
        if waiting[number] and draw(st.booleans()):
            named = draw(st.lists(st.sampled_from(waiting[number]), min_size=1, unique=True))
            waiting[number] = [one for one in waiting[number] if one not in named]
            fate = draw(st.sampled_from([RETRIED, DROPPED, "of a later version"]))
            log.append((number, Disposition(1, fate, [Decided(one) for one in named])))
        else:
            log.append((number, letter_at((number, offset), *draw(letter_fields))))
            waiting[number].append(offset)
    return log


wanted_ones = st.builds(
    Wanted,
    ids=st.frozensets(st.tuples(st.integers(0, 1), st.integers(0, 12)), max_size=4),
    reasons=st.frozensets(st.sampled_from(REASONS), max_size=2),
    streams=st.frozensets(st.sampled_from(STREAMS), max_size=2),
    since_us=st.none() | st.integers(0, 9),
    until_us=st.none() | st.integers(0, 9),
    decided=st.booleans(),
)


def take_in(log, wanted):
    found = DeadLetters(wanted)
    for number, one in log:
        if isinstance(one, Letter):
            found.add(one)
        else:
            found.decide(number, one)
    return found


@given(logs(), wanted_ones)
def test_what_is_meant_is_found_with_what_was_decided_about_it(log, wanted):
    fates = {
        (number, decided.offset): one.fate
        for number, one in log
        if isinstance(one, Disposition)
        for decided in one.letters
    }
    expected = []
    for _, one in log:
        if not isinstance(one, Letter) or (one.key in fates and not wanted.decided):
            continue
        if wanted.ids and one.key not in wanted.ids:
            continue
        if wanted.reasons and one.reason not in wanted.reasons:
            continue
        if wanted.streams and not (one.count and one.stream in wanted.streams):
            continue
        if wanted.since_us is not None and one.at_us < wanted.since_us:
            continue
        if wanted.until_us is not None and one.at_us > wanted.until_us:
            continue
        expected.append(msgspec.structs.replace(one, fate=fates.get(one.key, "")))

    found = take_in(log, wanted)

    assert sorted(found.letters(), key=lambda one: one.key) == sorted(expected, key=lambda one: one.key)
    assert [one.at_us for one in found.letters()] == sorted(one.at_us for one in expected)
    assert found.reasons == {one.reason for _, one in log if isinstance(one, Letter)}


@given(logs(), st.sampled_from([RETRIED, DROPPED]))
def test_every_letter_is_to_be_decided_hindered_or_decided(log, fate):
    letters = take_in(log, Wanted(decided=True)).letters()
    chosen, hindered, before = to_be_decided(letters, fate)

    assert len(chosen) + len(hindered) + before.total() == len(letters)
    assert all(not one.fate for one in (*chosen, *hindered))
    assert all(one.hindrance for one in hindered)
    assert not hindered if fate == DROPPED else not any(one.hindrance for one in chosen)
    assert before.total() == sum(bool(one.fate) for one in letters)


def test_more_than_can_be_held_is_refused_and_what_was_decided_makes_room():
    found = DeadLetters(Wanted(), most=2)
    for offset in (0, 1):
        found.add(letter_at((0, offset), 0, "r", "s", 1, False))
    found.decide(0, Disposition(1, DROPPED, [Decided(0)]))
    found.add(letter_at((0, 3), 0, "r", "s", 1, False))
    with pytest.raises(ConfigError, match="more than 2 dead letters are meant: take fewer at a time: --since"):
        found.add(letter_at((0, 4), 0, "r", "s", 1, False))


@given(
    letters=st.lists(st.tuples(st.integers(0, 1), st.sampled_from(STREAMS)), min_size=1, max_size=30),
    lives=st.lists(st.tuples(st.integers(1, 7), st.integers(0, 6)), max_size=12),
)
def test_whoever_dies_when_each_letter_is_retried_once_and_seqs_are_dense(letters, lives):
    """A life retries in batches until it dies: batches before its death are committed, the one at its death is not."""
    log = [
        (number, letter_at((number, offset), 0, "r", stream, 1, False))
        for offset, (number, stream) in enumerate(letters)
    ]
    positions, items = {}, []
    for batch, batches in [*lives, (3, len(letters))]:
        waiting = take_in(log, Wanted()).letters()
        capture = Capture(sorted({retry_stream(one.stream) for one in waiting}), positions, epoch=len(log))
        for start in range(0, batch * batches, batch):
            some, decided = waiting[start : start + batch], defaultdict(list)
            for one in some:
                item = ItemId(retry_stream(one.stream), *capture.take(retry_stream(one.stream), place(TOPIC, one.key)))
                decided[one.partition].append(Decided(one.offset, item))
                items.append(item)
            positions = positions | capture.changed()
            log += [(number, Disposition(1, RETRIED, named)) for number, named in decided.items()]
        for one in waiting[batch * batches :][:batch]:
            capture.take(retry_stream(one.stream), place(TOPIC, one.key))
    decided = take_in(log, Wanted(decided=True)).letters()

    assert not take_in(log, Wanted()).letters()
    assert sorted(one.item for one in decided) == sorted(items)
    assert len(items) == len(letters)
    by_stream = defaultdict(list)
    for item in items:
        by_stream[item.stream].append((item.epoch, item.seq))
    for stream, of_stream in by_stream.items():
        assert of_stream == [(of_stream[0][0], seq) for seq in range(len(of_stream))]
        assert (positions[stream].epoch, positions[stream].next_seq) == (of_stream[0][0], len(of_stream))
    refuse_producers(((name, at.source_position) for name, at in positions.items()), TOPIC)


header_values = st.builds(
    Header,
    version=st.just(1),
    stream=st.sampled_from(STREAMS),
    epoch=st.integers(0, 9),
    first_seq=st.integers(0, 9),
    count=st.integers(1, 3),
    capture_us=st.integers(0, 1 << 50),
    deadline_us=st.integers(0, 1 << 50),
    priority=st.integers(0, 2),
    codec=st.sampled_from(["", "raw", "jpeg"]),
    params=st.builds(Params, shape=st.sampled_from([(), (2, 3)])),
    source_position=st.integers(0, 9) | st.text(max_size=5),
    gate_score=st.none() | st.floats(0, 1),
    hops=st.integers(0, 2),
    model=st.sampled_from(["", "m@1"]),
    extra=st.builds(Extra, edge_label=st.none() | st.just("4"), origin=st.none() | st.just(Origin(0, 1, 2))),
)


@given(header_values, st.integers(0, 1 << 50))
def test_a_retried_item_is_as_it_was_captured_but_for_its_name_its_deadline_and_its_way(header, deadline_us):
    item = ItemId(retry_stream(header.stream), 8, 2)
    anew = captured_anew(header, item, place(TOPIC, (3, 17)), deadline_us)

    assert headers.decode(headers.encode(anew)) == anew
    assert (anew.stream, anew.epoch, anew.first_seq) == (item.stream, item.epoch, item.seq)
    assert (anew.deadline_us, anew.source_position) == (deadline_us, "site.dead_letters[3]@17")
    assert (anew.hops, anew.model, anew.extra) == (0, "", Extra())
    for name in ("count", "capture_us", "priority", "codec", "params", "gate_score", "trace"):
        assert getattr(anew, name) == getattr(header, name)


@given(st.text(min_size=1, max_size=20))
def test_a_stream_has_one_stream_of_retries(stream):
    assert retry_stream(stream).startswith(RETRY)
    assert retry_stream(retry_stream(stream)) == retry_stream(stream)


@pytest.mark.parametrize("position", [3, None, "", "frame-7", "other.dead_letters[0]@1"])
def test_a_stream_that_a_producer_numbers_is_refused(position):
    with pytest.raises(ConfigError, match="stream 'retry/cam-0', in which retries would be captured, is one of a prod"):
        refuse_producers([("retry/cam-0", position)], TOPIC)


@given(header_values)
def test_only_what_can_be_processed_again_is_without_hindrance(header):
    assert hindrance(Tier.CLOUD, header, later_version=False) == SETTLED_AT_ITS_SITE
    assert hindrance(Tier.EDGE, None, later_version=True) == LATER_VERSION
    assert hindrance(Tier.EDGE, None, later_version=False) == NO_ITEM
    expected = NOT_ENCODED if not header.codec else SEVERAL if header.count > 1 else ""
    assert hindrance(Tier.EDGE, header, later_version=False) == expected


class Stored(msgspec.Struct):
    """A record as it lies in a topic."""

    content: bytes | None
    given: list | None

    def topic(self):
        return "site.items"

    def partition(self):
        return 3

    def offset(self):
        return 17

    def key(self):
        return b"k"

    def value(self):
        return self.content

    def headers(self):
        return self.given

    def timestamp(self):
        return 0, 5


later = msgspec.msgpack.encode([2, "cam-0", 7, 4, 2, {"all": "new"}])
raw_headers = st.lists(
    st.tuples(
        st.sampled_from([headers.TG, headers.CONTENT_TYPE, REASON, FROM, DISPOSITION, "x"]),
        st.none() | st.text(max_size=5) | st.binary(max_size=5) | header_values.map(headers.encode) | st.just(later),
    ),
    max_size=6,
)
disposition_bytes = st.just(wire.encode(Disposition(1, RETRIED, [Decided(4, ItemId("s", 1, 2))])))


@given(st.none() | st.binary(max_size=9) | disposition_bytes, st.none() | raw_headers)
def test_any_record_can_be_read_and_none_that_is_quarantined_passes_for_a_disposition(content, given):
    one = read(Tier.EDGE, Stored(content, given))
    if isinstance(one, Disposition):
        assert wire.encode(one) == content
        assert not {name for name, _ in given} & {REASON}
    kept = dead_letter(TOPIC, Stored(content, given), "because")
    letter = read(Tier.EDGE, Stored(kept.value, kept.headers))
    assert isinstance(letter, Letter)
    assert (letter.reason, letter.came_from, letter.id) == ("because", "site.items[3]@17", "3@17")
    assert (letter.at_us, letter.size_bytes) == (5_000, len(content or b""))
    assert (letter.count == 0) == (letter.hindrance == NO_ITEM)
    assert letter.seqs == ("" if not letter.count else letter.seqs)


@given(st.tuples(st.integers(0, 10**9 - 1), st.integers(0, 10**18 - 1)))
def test_ids_are_read_as_they_are_shown(key):
    assert parse_id(letter_at(key, 0, "r", "s", 1, False).id) == key


@pytest.mark.parametrize(
    "text", ["", "3", "3@", "@3", "3-17", "-1@2", "3@17 ", "a@b", "3@17@4", "٣@17", "9" * 10 + "@1"]
)
def test_what_is_no_id(text):
    assert parse_id(text) is None


@pytest.mark.parametrize(("count", "text"), [(0, ""), (1, "3"), (3, "3-5")])
def test_seqs_as_people_write_them(count, text):
    assert letter_at((0, 0), 0, "r", "s", count, False).seqs == text


@given(st.text() | st.sampled_from(["\x1b[2J", "\u202eabc", "a\nb", "\x9b31m", "\ud800"]))
def test_text_of_strangers_is_on_one_line_and_cannot_steer_a_terminal(text):
    shown = printable(text)
    assert shown.isprintable()
    assert (shown == text) == text.isprintable()


@given(st.binary(max_size=3 * TEXT_MOST) | st.text(max_size=2 * TEXT_MOST).map(lambda text: text.encode()))
def test_a_payload_is_shown_safely_and_what_is_left_out_is_counted(payload):
    lines = preview(payload)
    assert all(line.isprintable() for line in lines)
    assert sum(map(len, lines)) <= 12 * TEXT_MOST
    assert printable_bytes(payload).isprintable()
    if len(payload) > 4 * TEXT_MOST:
        assert " bytes more" in lines[-1]


def test_text_is_shown_as_text_and_all_else_in_hex():
    assert preview(b"one\ntwo\t3") == ["one", "two\\t3"]
    assert preview("é".encode() * (TEXT_MOST + 7)) == ["é" * TEXT_MOST, "... and 14 bytes more"]
    # What is looked at ends within a character.
    assert preview(b"a" + "€".encode() * 2_000)[0] == "a" + "€" * (TEXT_MOST - 1)
    assert preview(b"a\x00b") == [f"{'61 00 62':<47}  a.b"]
    assert preview(b"\xff" * (BYTES_MOST + 1))[-1] == "... and 1 bytes more"
    assert len(preview(b"\xff" * (BYTES_MOST + 1))) == BYTES_MOST // 16 + 1
    assert printable_bytes(b"\x1b[2J") == "1b 5b 32 4a"
