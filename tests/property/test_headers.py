import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import headers
from schemas.errors import ForeignRecord, RecordError, UnknownVersion
from schemas.headers import COUNT_MOST, VERSION, Extra, Header, Origin, Params

whole = st.integers(0, 2**62)
header_values = st.builds(
    Header,
    version=st.just(VERSION),
    stream=st.text(min_size=1, max_size=20),
    epoch=whole,
    first_seq=whole,
    count=st.integers(1, COUNT_MOST),
    capture_us=whole,
    deadline_us=whole,
    priority=st.integers(0, 2),
    codec=st.text(max_size=8),
    params=st.builds(
        Params, st.lists(st.integers(1, 9999), max_size=3).map(tuple), st.just("uint8"), st.integers(0, 9)
    ),
    source_position=whole | st.text(max_size=9),
    gate_score=st.none() | st.floats(allow_nan=False),
    extra=st.builds(Extra, edge_label=st.none() | st.text(max_size=5), origin=st.none() | st.just(Origin(1, 2, 3))),
)
anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=12,
)


@given(header_values)
def test_a_header_reads_back(header):
    assert headers.decode(headers.encode(header)) == header


@given(st.binary(max_size=60) | anything.map(msgspec.msgpack.encode))
def test_whatever_the_bytes_are_nothing_but_a_record_error_comes(raw):
    try:
        headers.decode(raw)
    except RecordError:
        return


@given(header_values, st.lists(anything, max_size=14), st.integers(VERSION + 1, 200))
def test_a_later_version_can_still_be_accounted_for(header, rest, version):
    account = [version, header.stream, header.epoch, header.first_seq, header.count]
    with pytest.raises(UnknownVersion) as raised:
        headers.decode(msgspec.msgpack.encode([*account, *rest]))
    assert raised.value.account == tuple(account)


@pytest.mark.parametrize(
    "change",
    [{"count": 0}, {"count": COUNT_MOST + 1}, {"first_seq": -1}, {"stream": ""}, {"priority": 3}, {"priority": -1}],
    ids=str,
)
def test_impossible_values_are_foreign(change):
    good = Header(VERSION, "s", 1, 0, 1, 0, 0, 1, "raw")
    with pytest.raises(ForeignRecord):
        headers.decode(headers.encode(msgspec.structs.replace(good, **change)))


def test_fields_that_a_later_writer_appends_are_passed_over():
    good = Header(VERSION, "s", 1, 0, 1, 0, 0, 1, "raw")
    fields = msgspec.msgpack.decode(headers.encode(good))
    assert headers.decode(msgspec.msgpack.encode([*fields, "later"])) == good


@pytest.mark.parametrize("given_headers", [None, [], [("other", b"x")], [("tg", None)]], ids=str)
def test_a_record_without_the_header_is_foreign(given_headers):
    with pytest.raises(ForeignRecord, match="no 'tg' header"):
        headers.find(given_headers)


def test_golden_bytes():
    header = Header(VERSION, "cam-00", 7, 3, 1, 10, 20, 1, "raw", Params((28, 28)), 5)
    assert headers.encode(header).hex() == (
        "dc001001a663616d2d30300703010a1401a372617793921c1ca575696e74380005c000a0c080"
    )
