"""What every source must do, those that are installed and the one in examples; and what ours say of bad input."""

import gzip
import os
import struct
import sys
from itertools import chain, islice
from pathlib import Path

import cv2
import numpy as np
import pytest

from edge_workers.preprocess import Preprocess
from edge_workers.sources.base import check_rate, open_source
from pipelines.codecs.base import find_codec
from pipelines.config.units import Rate
from pipelines.errors import SourceError

EXAMPLES = Path(__file__).parents[2] / "examples"
IMAGES = np.stack([np.full((6, 8), 20 * number, np.uint8) for number in range(11)])


def idx_bytes(images=IMAGES):
    return struct.pack(f">4B{images.ndim}I", 0, 0, 8, images.ndim, *images.shape) + images.tobytes()


def plain_idx(folder):
    (folder / "images-idx3-ubyte").write_bytes(idx_bytes())
    return "idx", folder / "images-idx3-ubyte"


def gzipped_idx(folder):
    (folder / "images-idx3-ubyte.gz").write_bytes(gzip.compress(idx_bytes()))
    return "idx", folder / "images-idx3-ubyte.gz"


def image_folder(folder):
    for number, image in enumerate(IMAGES):
        file = folder / ("b" if number > 6 else "a") / f"{number:02}.png"
        file.parent.mkdir(exist_ok=True)
        cv2.imwrite(str(file), image)
        os.utime(file, ns=(0, number * 500_000_000))
    (folder / "a" / "notes.txt").write_text("not an image")
    (folder / "a" / "._00.png").write_text("what a Mac leaves behind")
    return "images", folder


def npy_example(folder):
    np.save(folder / "images.npy", IMAGES)
    return "own_source:NpyArchive", folder / "images.npy"


@pytest.fixture(params=[plain_idx, gzipped_idx, image_folder, npy_example], ids=lambda make: make.__name__)
def make(request, tmp_path, monkeypatch):
    """Opens the same eleven images from one kind of source."""
    monkeypatch.syspath_prepend(EXAMPLES)
    kind, path = request.param(tmp_path)
    yield lambda **settings: open_source(kind, path, **settings)
    sys.modules.pop("own_source", None)


def pixel(frame):
    prepared = Preprocess(find_codec("raw"))(frame.content)
    return int(prepared.codec.decode(prepared.payload, prepared.params)[0, 0])


def positions(source, stream, after=None):
    return [frame.position for frame in source.frames(stream, after)]


@pytest.mark.parametrize("streams", [1, 3, 11])
@pytest.mark.parametrize("loop", [1, 2])
def test_every_item_of_every_round_is_in_one_stream_once(make, streams, loop):
    source = make(streams=streams, loop=loop)
    assert len(set(source.streams)) == streams
    of_streams = [positions(source, stream) for stream in source.streams]
    assert all(one == sorted(set(one)) for one in of_streams)
    assert sorted(chain.from_iterable(of_streams)) == list(range(11 * loop))


def test_item_i_goes_to_camera_i_modulo_streams(make):
    source = make(streams=4)
    assert source.streams == ["cam-00", "cam-01", "cam-02", "cam-03"]
    assert [pixel(frame) for frame in source.frames("cam-02", None)] == [40, 120, 200]


@pytest.mark.parametrize("streams", [1, 3])
def test_a_source_goes_on_exactly_behind_any_position(make, streams):
    source = make(streams=streams, loop=3)
    for stream in source.streams:
        whole = positions(source, stream)
        for number, after in enumerate(whole):
            assert positions(make(streams=streams, loop=3), stream, after) == whole[number + 1 :]


def test_loop_0_has_no_end(make):
    source = make(streams=2, loop=0)
    # Items 1, 3, 5, 7 and 9: five a round.
    seen = [(frame.position, pixel(frame)) for frame in islice(source.frames("cam-01", None), 100)]
    assert seen == [(played * 11 + index, 20 * index) for played in range(20) for index in range(1, 11, 2)]
    assert next(source.frames("cam-01", 10**15)).position > 10**15


def test_more_streams_than_items_are_refused(make):
    with pytest.raises(SourceError, match=r"11 items for 12 streams: lower `source\.streams`"):
        make(streams=12)


def test_a_misspelt_option_is_refused(make):
    with pytest.raises(SourceError, match=r"evry.*correct `source\.options`"):
        make(evry=2)


def test_a_position_of_another_source_is_refused(make):
    with pytest.raises(SourceError, match="stands at 'frame 7'"):
        next(make().frames("cam-00", "frame 7"))


def test_recorded_times_are_those_of_the_files_and_go_on_over_rounds(tmp_path):
    kind, path = image_folder(tmp_path)
    source = open_source(kind, path, loop=2)
    assert [frame.recorded_us for frame in source.frames("cam-00", None)] == [500_000 * n for n in range(22)]
    check_rate(source, Rate(as_recorded=True))


def test_an_archive_knows_no_recorded_times(tmp_path):
    kind, path = plain_idx(tmp_path)
    source = open_source(kind, path)
    check_rate(source, Rate())
    with pytest.raises(SourceError, match=r"no recorded times: give `source\.rate`"):
        check_rate(source, Rate(as_recorded=True))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not an idx archive"),
        (b"\x00\x00\x0d\x03" + bytes(12), "not an idx archive"),  # Floats.
        (b"\x00\x00\x08\x03\x00\x00", "says that it holds"),
        (struct.pack(">4B3I", 0, 0, 8, 3, 2**32 - 1, 2**32 - 1, 2**32 - 1), "says that it holds"),
        (struct.pack(">4B3I", 0, 0, 8, 3, 0, 28, 28), "says that it holds 0 bytes"),
        (idx_bytes()[:-1], "holds only 527"),
        (idx_bytes() + b"\x00", "holds more"),
        (gzip.compress(idx_bytes())[:-20], "is damaged"),
        (gzip.compress(idx_bytes())[:40] + bytes(40), "is damaged"),
    ],
)
def test_a_bad_archive_is_named_with_the_remedy(tmp_path, content, said):
    file = tmp_path / "bad"
    file.write_bytes(content)
    with pytest.raises(SourceError, match=said) as raised:
        open_source("idx", file)
    assert str(file) in str(raised.value)
    assert raised.value.remedy


@pytest.mark.parametrize("kind", ["idx", "images"])
def test_a_path_that_is_not_there_is_named(tmp_path, kind):
    with pytest.raises(SourceError, match=r"missing .*: correct "):
        open_source(kind, tmp_path / "missing")


def test_an_empty_folder_says_what_belongs_there(tmp_path):
    with pytest.raises(SourceError, match=r"holds no images: .*\.png"):
        open_source("images", tmp_path)


@pytest.mark.parametrize("kind", ["webcam", "no_such_module:Source", "own_source:", "pathlib:Nothing"])
def test_a_source_that_cannot_be_found_is_named(tmp_path, kind):
    with pytest.raises(SourceError, match=kind):
        open_source(kind, tmp_path)
