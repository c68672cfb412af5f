"""Items of one kind on models of another: grey and colour, any size, before the model sees them."""

import cv2
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from pipelines.codecs.jpeg import Jpeg
from pipelines.errors import ModelError
from pipelines.models.release import load_release
from pipelines.runtime.inference import ModelRunner, Undecided
from schemas.headers import VERSION, Header, Params

RED, GREEN, BLUE = ([255 if index == at else 0 for index in range(3)] for at in range(3))


@pytest.fixture(scope="module")
def make_runner(tmp_path_factory):
    """`make_runner(channels, side)`: answers with the strongest channel; of one channel, with light or dark."""

    def make(channels: int, side: int | None) -> ModelRunner:
        classes = max(channels, 2)
        dims = ["n", channels, side or "height", side or "width"]
        weights = np.eye(channels, classes, dtype=np.float32) if channels > 1 else np.array([[1, 0]], np.float32)
        bias = np.zeros(classes, np.float32) if channels > 1 else np.array([0, 0.5], np.float32)
        graph = helper.make_graph(
            [
                helper.make_node("ReduceMean", ["images"], ["means"], axes=[2, 3], keepdims=0),
                helper.make_node("MatMul", ["means", "weights"], ["weighted"]),
                helper.make_node("Add", ["weighted", "bias"], ["scores"]),
            ],
            "strongest",
            [helper.make_tensor_value_info("images", TensorProto.FLOAT, dims)],
            [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", classes])],
            [onnx.numpy_helper.from_array(weights, "weights"), onnx.numpy_helper.from_array(bias, "bias")],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        path = tmp_path_factory.mktemp("model") / "strongest.onnx"
        path.write_bytes(model.SerializeToString())
        return ModelRunner(load_release(path))

    return make


def raw(array: np.ndarray) -> tuple[Header, bytes]:
    header = Header(VERSION, "cam", 0, 0, 1, 0, 0, 0, "raw", Params(shape=array.shape))
    return header, array.astype(np.uint8).tobytes()


def jpeg(array: np.ndarray) -> tuple[Header, bytes]:
    return Header(VERSION, "cam", 0, 0, 1, 0, 0, 0, "jpeg"), Jpeg(95).encode(array.astype(np.uint8))[0]


def plain(colour: list[int] | int, height: int = 16, width: int = 24) -> np.ndarray:
    return np.full((height, width, 3), colour) if isinstance(colour, list) else np.full((height, width), colour)


@pytest.mark.parametrize("side", [32, None])
@pytest.mark.parametrize("encode", [raw, jpeg])
def test_grey_and_colour_of_any_size_in_one_batch(make_runner, side, encode):
    runner = make_runner(3, side)
    images = [plain(RED), plain(200), plain(GREEN, 40, 30), plain(BLUE), plain(90, 8, 8), plain(RED, 9, 16)]
    answers = runner.answer([encode(image) for image in images])
    assert not [answer for answer in answers if isinstance(answer, Undecided)]
    assert [answers[at].label for at in (0, 2, 3, 5)] == ["0", "1", "2", "0"]
    # A grey image has three channels alike.
    assert [answers[at].confidence for at in (1, 4)] == pytest.approx([1 / 3, 1 / 3])


@pytest.mark.parametrize("side", [32, None])
@pytest.mark.parametrize("encode", [raw, jpeg])
def test_colour_becomes_as_light_as_it_looks(make_runner, side, encode):
    runner = make_runner(1, side)
    # ITU-R BT.601: green is 0.587 of white, red 0.299, blue 0.114; the border is at 0.5.
    images = [plain(GREEN), plain(RED), plain(BLUE), plain(255), plain(0), plain([255, 255, 255])]
    labels = [answer.label for answer in runner.answer([encode(image) for image in images])]
    assert labels == ["0", "1", "1", "0", "1", "0"]


def test_what_is_no_image_of_one_or_three_channels_is_told_apart(make_runner):
    runner = make_runner(3, 32)
    four, flat = np.zeros((8, 8, 4)), np.zeros(16)
    answers = runner.answer([raw(plain(RED)), raw(four), raw(flat)])
    assert answers[0].label == "0"
    assert answers[1:] == [Undecided("wrong_shape"), Undecided("wrong_shape")]


@pytest.mark.parametrize("shape", [(28, 28), (28, 28, 1), (480, 640, 3), (32, 32, 3)])
def test_items_that_can_be_fitted_pass_the_check(make_runner, shape):
    for channels in (1, 3):
        make_runner(channels, 32).check_items(shape)
        make_runner(channels, None).check_items(shape)


def test_the_check_names_the_shape_that_the_items_have(make_runner):
    with pytest.raises(ModelError, match=r"expects items of 32x32x3 .* the items are 28x28x4 "):
        make_runner(3, 32).check_items((28, 28, 4))


def test_items_that_fit_are_handed_over_as_they_are(make_runner, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("an item that fits was touched")

    monkeypatch.setattr(cv2, "resize", fail)
    monkeypatch.setattr(cv2, "cvtColor", fail)
    answers = make_runner(3, 32).answer([raw(plain(RED, 32, 32)), raw(plain(BLUE, 32, 32))])
    assert [answer.label for answer in answers] == ["0", "2"]
