"""What every codec must do, those that are installed and the one in examples."""

import importlib.util
import struct
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.codecs import base
from pipelines.codecs.jpeg import Jpeg, read_frame_header
from pipelines.errors import ConfigError, UndecodableItem
from schemas import headers
from schemas.headers import Header, Params

EXAMPLES = Path(__file__).parents[2] / "examples"
LOSS = {"jpeg": 12}
"""Mean difference allowed on smooth images, of 255. All others must be exact."""


def example_codec():
    spec = importlib.util.spec_from_file_location("own_codec", EXAMPLES / "own_codec.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Deflate()


CODECS = [*(base.find_codec(name) for name in sorted(base.installed())), example_codec()]
every_codec = pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)


def smooth(shape):
    rows = np.linspace(0, 200, shape[0])[:, None]
    image = (rows + np.linspace(0, 55, shape[1])).astype(np.uint8)
    return image if len(shape) == 2 else np.stack([image, image // 2, 255 - image], axis=2)


def header_for(codec, params):
    return Header(headers.VERSION, "cam-00", 1, 0, 1, 10, 20, 1, codec.name, params)


@every_codec
@pytest.mark.parametrize("shape", [(28, 28), (1, 1), (48, 64, 3), (17, 5, 3)])
def test_a_round_trip_through_a_header_keeps_the_image(codec, shape):
    image = smooth(shape)
    payload, params = codec.encode(image)
    travelled = headers.decode(headers.encode(header_for(codec, params)))
    decoded = codec.decode(payload, travelled.params)
    assert decoded.dtype == np.uint8
    assert decoded.shape == shape
    assert np.abs(decoded.astype(int) - image).mean() <= LOSS.get(codec.name, 0)


@every_codec
def test_colours_keep_their_order(codec):
    red = np.zeros((16, 16, 3), np.uint8)
    red[..., 0] = 200
    decoded = codec.decode(*codec.encode(red))
    assert decoded[8, 8, 0] > 150
    assert decoded[8, 8, 2] < 50


@every_codec
def test_a_view_that_is_not_contiguous_is_encoded_as_it_looks(codec):
    image = smooth((40, 60))
    view = image[::2, ::3]
    assert codec.encode(view)[0] == codec.encode(np.ascontiguousarray(view))[0]


@every_codec
@given(payload=st.binary(max_size=2_000), shape=st.lists(st.integers(-3, 1 << 40), max_size=6))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_an_image_or_undecodable(codec, payload, shape):
    try:
        decoded = codec.decode(payload, Params(shape=tuple(shape)))
    except UndecodableItem:
        return
    assert decoded.dtype == np.uint8


@every_codec
@given(share=st.floats(0, 0.999))
@settings(max_examples=100, deadline=None)
def test_a_truncated_payload_is_undecodable(codec, share):
    payload, params = codec.encode(smooth((48, 64, 3)))
    with pytest.raises(UndecodableItem):
        codec.decode(payload[: int(len(payload) * share)], params)


@every_codec
@given(at=st.integers(0, 10_000), garbage=st.binary(min_size=1, max_size=30))
@settings(max_examples=200, deadline=None)
def test_a_damaged_payload_never_crashes(codec, at, garbage):
    payload, params = codec.encode(smooth((32, 32, 3)))
    at %= len(payload)
    try:
        decoded = codec.decode(payload[:at] + garbage + payload[at + len(garbage) :], params)
    except UndecodableItem:
        return
    assert decoded.size <= 3 * base.MAX_PIXELS


@pytest.mark.parametrize("name", sorted(base.installed()))
def test_a_codec_is_called_what_its_entry_point_is(name):
    assert base.find_codec(name).name == name
    assert base.find_codec(name) is base.find_codec(name)


def test_a_jpeg_that_claims_to_be_huge_is_refused_before_it_is_decoded():
    payload, params = Jpeg().encode(smooth((32, 32)))
    at = payload.index(b"\xff\xc0") + 5
    bomb = payload[:at] + struct.pack(">HH", 65_000, 65_000) + payload[at + 4 :]
    with pytest.raises(UndecodableItem, match="65000 x 65000"):
        Jpeg().decode(bomb, params)


def test_a_jpeg_that_lacks_its_end_is_truncated_whatever_a_decoder_makes_of_it():
    payload, _ = Jpeg().encode(smooth((32, 40)))
    assert read_frame_header(payload) == (32, 40, 1)
    with pytest.raises(UndecodableItem, match="truncated"):
        read_frame_header(payload[:-2])


def test_a_jpeg_is_a_jpeg_and_its_quality_counts():
    image = np.random.default_rng(5).integers(0, 256, (64, 64), dtype=np.uint8)
    low, high = (base.find_codec("jpeg", quality=quality).encode(image)[0] for quality in (20, 95))
    assert len(low) < len(high)
    assert cv2.imdecode(np.frombuffer(high, np.uint8), cv2.IMREAD_UNCHANGED).shape == (64, 64)


@pytest.mark.parametrize(
    "array", [np.zeros((4, 4), np.float32), np.zeros((4, 4, 2), np.uint8), np.zeros((0, 4), np.uint8)], ids=str
)
def test_an_array_that_jpeg_cannot_hold_is_refused_with_a_remedy(array):
    with pytest.raises(ConfigError, match="use codec 'raw'"):
        Jpeg().encode(array)


@pytest.mark.parametrize("settings", [{"quality": 0}, {"qualty": 80}])
def test_settings_that_are_wrong_are_refused(settings):
    with pytest.raises(ConfigError, match=r"quality|qualty"):
        base.find_codec("jpeg", **settings)


def test_an_unknown_codec_in_a_header_names_the_known_ones():
    with pytest.raises(ConfigError, match="jpeg, raw"):
        base.decode(header_for(example_codec(), Params()), b"")


def test_a_codec_of_another_package_is_found(tmp_path, monkeypatch):
    info = tmp_path / "own_codec-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: own-codec\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[tidegate.codecs]\ndeflate = own_codec:Deflate\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.syspath_prepend(EXAMPLES)
    base.installed.cache_clear()
    try:
        codec = base.find_codec("deflate")
        payload, params = codec.encode(smooth((28, 28)))
        assert np.array_equal(base.decode(header_for(codec, params), payload), smooth((28, 28)))
    finally:
        base.installed.cache_clear()
        base.find_codec.cache_clear()
        sys.modules.pop("own_codec", None)
