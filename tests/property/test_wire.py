import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import wire
from schemas.errors import ForeignRecord

DECODERS = {name: one for name, one in vars(wire).items() if isinstance(one, wire.Decoder)}

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=10,
)
known_keys = st.sampled_from(sorted({field for one in DECODERS.values() for field in one.kind.__struct_fields__}))
almost_ours = st.dictionaries(known_keys, anything, max_size=12)

finite = st.floats(allow_nan=False, allow_infinity=False)
windows = st.builds(wire.Window, mean_confidence=finite, mean_latency_ms=finite)


@pytest.mark.parametrize("name", DECODERS)
@given(raw=st.binary(max_size=40) | (anything | almost_ours).map(msgspec.json.encode))
def test_whatever_the_bytes_are_nothing_but_a_foreign_record_comes(name, raw):
    decode = DECODERS[name]
    try:
        assert isinstance(decode(raw), decode.kind)
    except ForeignRecord:
        return


@given(windows)
def test_a_window_reads_back(window):
    assert wire.decode_window(wire.encode(window)) == window
