"""Releases, the ONNX runtime and heads: what ships, the user's own files, and all that can be wrong with them."""

import shutil
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from pipelines.errors import ModelError
from pipelines.models.base import Head
from pipelines.models.heads import Classify, find_head, head_for
from pipelines.models.onnx import CHUNK_ITEMS, OnnxModel
from pipelines.models.release import SHIPPED, ModelInput, builtin_names, load_release

SHIPPED_NAMES = ("digits-large", "digits-small")


def write_mean_model(
    path: Path,
    dims: list[int | str],
    *,
    layout: str,
    dtype: int = TensorProto.UINT8,
    softmax: bool = False,
    outputs: int = 1,
) -> Path:
    """A model whose logits are the mean of an image times 0, 1 and 2: what it answers can be worked out by hand."""
    axes = [index for index, name in enumerate(layout) if name != "N"]
    nodes = [
        helper.make_node("Cast", ["images"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["float"], ["mean"], axes=axes, keepdims=0),
        helper.make_node("Unsqueeze", ["mean", "last"], ["column"]),
        helper.make_node("Mul", ["column", "weights"], ["logits"]),
    ]
    nodes += [helper.make_node("Softmax", ["logits"], ["out0"], axis=1)] if softmax else []
    nodes += [] if softmax else [helper.make_node("Identity", ["logits"], ["out0"])]
    nodes += [helper.make_node("Identity", ["logits"], [f"out{index}"]) for index in range(1, outputs)]
    rows = dims[0]
    graph = helper.make_graph(
        nodes,
        "mean",
        [helper.make_tensor_value_info("images", dtype, dims)],
        [helper.make_tensor_value_info(f"out{index}", TensorProto.FLOAT, [rows, 3]) for index in range(outputs)],
        [
            numpy_helper.from_array(np.array([1], np.int64), "last"),
            numpy_helper.from_array(np.array([[0, 1, 2]], np.float32), "weights"),
        ],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def images(count: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(7).integers(0, 256, (count, *shape), np.uint8)


@pytest.mark.parametrize("name", SHIPPED_NAMES)
def test_a_shipped_model_agrees_with_its_card_and_runs(name: str) -> None:
    release = load_release(f"builtin:{name}")
    model = OnnxModel(release)
    head = head_for(release, model.classes)
    given = release.card.input
    assert model.item_shape == (given.height, given.width, given.channels) == (28, 28, 1)
    assert head.labels == tuple("0123456789")
    assert release.card.size_bytes == release.path.stat().st_size <= 2 * 1024 * 1024
    assert release.model_id == f"{name}@{release.card.version}"
    assert 0 < release.card.threshold < 1
    assert {seen.items for seen in release.card.accuracy} >= {5_000, 10_000}
    answers = head.read(model.run(images(5, 28, 28)))
    assert answers.label.shape == answers.confidence.shape == (5,)
    assert np.all((answers.confidence > 0) & (answers.confidence <= 1))


@pytest.mark.parametrize("name", SHIPPED_NAMES)
def test_a_shipped_model_opens_with_old_runtimes(name: str) -> None:
    proto = onnx.load(SHIPPED / f"{name}.onnx")
    assert proto.ir_version <= 8
    assert [opset.version for opset in proto.opset_import] == [17]
    onnx.checker.check_model(proto, full_check=True)


@pytest.mark.parametrize("name", SHIPPED_NAMES)
def test_a_shipped_page_says_what_its_card_says(name: str) -> None:
    from cloud_workers.training.page import card_page

    card = load_release(f"builtin:{name}").card
    assert (SHIPPED / f"{name}.md").read_text() == card_page(card)


def test_builtin_names_are_those_shipped() -> None:
    assert builtin_names() == list(SHIPPED_NAMES)


@pytest.mark.parametrize("count", [0, 1, CHUNK_ITEMS - 1, CHUNK_ITEMS, CHUNK_ITEMS + 1, 2 * CHUNK_ITEMS + 3])
def test_chunks_change_nothing(count: int) -> None:
    model = OnnxModel(load_release("builtin:digits-small"))
    batch = images(count, 28, 28)
    outputs = model.run(batch)
    assert outputs.shape == (count, 10)
    for row, item in zip(outputs, batch, strict=True):
        np.testing.assert_allclose(model.run(item[None])[0], row, rtol=1e-4, atol=1e-4)


def test_joined_payloads_run_without_a_copy_of_ours() -> None:
    model = OnnxModel(load_release("builtin:digits-small"))
    batch = images(3, 28, 28)
    joined = np.frombuffer(b"".join(item.tobytes() for item in batch), np.uint8).reshape(-1, 28, 28)
    assert np.shares_memory(model._arrange(joined), joined)
    np.testing.assert_array_equal(model.run(joined), model.run(batch))


@pytest.mark.parametrize(
    ("layout", "dims", "item"),
    [
        ("NHW", ["n", 5, 6], (5, 6)),
        ("NHW", ["n", 5, 6], (5, 6, 1)),
        ("NHWC", ["n", 5, 6, 3], (5, 6, 3)),
        ("NCHW", ["n", 3, 5, 6], (5, 6, 3)),
        ("NCHW", ["n", 1, 5, 6], (5, 6)),
        ("NCHW", [1, 3, 5, 6], (5, 6, 3)),
        ("NCHW", [5, 3, 5, 6], (5, 6, 3)),
        ("NCHW", ["n", 3, "h", "w"], (9, 8, 3)),
    ],
)
@pytest.mark.parametrize("dtype", [TensorProto.UINT8, TensorProto.FLOAT])
def test_every_layout_gives_the_same_answer(
    tmp_path: Path, layout: str, dims: list[int | str], item: tuple[int, ...], dtype: int
) -> None:
    path = write_mean_model(tmp_path / "m.onnx", dims, layout=layout, dtype=dtype)
    scale = 1.0 if dtype == TensorProto.UINT8 else 1 / 255
    model = OnnxModel(load_release(path))
    batch = images(7, *item)
    expected = batch.reshape(7, -1).mean(axis=1) * scale
    outputs = model.run(batch)
    assert outputs.dtype == np.float32
    np.testing.assert_allclose(outputs, expected[:, None] * [0, 1, 2], rtol=1e-4)


def test_a_float_model_gets_scale_mean_and_std_a_channel(tmp_path: Path) -> None:
    path = write_mean_model(tmp_path / "m.onnx", ["n", 2, 2, 3], layout="NHWC", dtype=TensorProto.FLOAT)
    given = ModelInput(scale=0.5, mean=(1.0, 2.0, 3.0), std=(1.0, 2.0, 4.0))
    batch = images(4, 2, 2, 3)
    expected = ((batch * 0.5 - [1, 2, 3]) / [1, 2, 4]).reshape(4, -1).mean(axis=1)
    outputs = OnnxModel(load_release(path, given=given)).run(batch)
    np.testing.assert_allclose(outputs[:, 1], expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("shape", "dtype"), [((32, 32), "uint8"), ((28, 28, 3), "uint8"), ((28, 28), "float32"), ((784,), "uint8")]
)
def test_items_that_do_not_fit_are_refused_in_one_line(shape: tuple[int, ...], dtype: str) -> None:
    model = OnnxModel(load_release("builtin:digits-small"))
    with pytest.raises(ModelError, match=r"expects items of 28x28x1 uint8.*the items are") as refused:
        model.check_item(shape, dtype)
    assert "\n" not in str(refused.value)
    with pytest.raises(ModelError):
        model.run(np.zeros((2, *shape), dtype))


def test_a_model_without_card_has_numbered_labels(tmp_path: Path) -> None:
    path = write_mean_model(tmp_path / "mine.onnx", ["n", 2, 2], layout="NHW")
    release = load_release(path)
    assert (release.card.name, release.card.temperature, release.card.threshold) == ("mine", 1.0, None)
    assert head_for(release, 3).labels == ("0", "1", "2")
    assert head_for(load_release(path, labels=("a", "b", "c")), 3).labels == ("a", "b", "c")
    with pytest.raises(ModelError, match="3 classes and 2 labels"):
        head_for(load_release(path, labels=("a", "b")), 3)


def test_the_output_of_classes_is_found_by_a_probe(tmp_path: Path) -> None:
    path = write_mean_model(tmp_path / "two.onnx", ["n", 2, 2], layout="NHW", outputs=2)
    with pytest.raises(ModelError, match=r"answers 2 items with .*out0.*out1"):
        OnnxModel(load_release(path))


@pytest.mark.parametrize(
    ("dims", "layout", "message"),
    [
        (["n", 784], "NX", "takes tensor"),
        (["n", 3, 9, 3], "NCHW", "NHWC or NCHW"),
        (["n", "c", "h", "w"], "NCHW", "NHWC or NCHW"),
    ],
)
def test_inputs_that_images_cannot_fill_are_refused(
    tmp_path: Path, dims: list[int | str], layout: str, message: str
) -> None:
    path = write_mean_model(tmp_path / "m.onnx", dims, layout=layout)
    with pytest.raises(ModelError, match=message):
        OnnxModel(load_release(path))


def test_a_stated_layout_settles_what_the_file_leaves_open(tmp_path: Path) -> None:
    path = write_mean_model(tmp_path / "m.onnx", ["n", "c", "h", "w"], layout="NCHW")
    given = ModelInput(layout="NCHW", channels=3, height=5, width=5)
    assert OnnxModel(load_release(path, given=given)).item_shape == (5, 5, 3)
    with pytest.raises(ModelError, match="leaves its channels open"):
        OnnxModel(load_release(path, given=ModelInput(layout="NCHW")))


def test_a_model_that_fails_on_its_items_is_named(tmp_path: Path) -> None:
    product = helper.make_graph(
        [
            helper.make_node("Cast", ["images"], ["float"], to=TensorProto.FLOAT),
            helper.make_node("Flatten", ["float"], ["flat"]),
            helper.make_node("MatMul", ["flat", "weights"], ["logits"]),
        ],
        "product",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["n", "h", "w"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 2])],
        [numpy_helper.from_array(np.ones((12, 2), np.float32), "weights")],
    )
    path = tmp_path / "product.onnx"
    onnx.save(helper.make_model(product, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    with pytest.raises(ModelError, match=r"does not run on items of 224x224x1 .*state the height and width") as refused:
        OnnxModel(load_release(path))
    assert "\n" not in str(refused.value)
    assert OnnxModel(load_release(path, given=ModelInput(height=3, width=4))).run(images(2, 3, 4)).shape == (2, 2)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (ModelInput(height=9), "height 2, stated is 9"),
        (ModelInput(layout="NHW"), "the stated layout is NHW"),
        (ModelInput(dtype="uint8"), "takes float32, the stated dtype is uint8"),
        (ModelInput(mean=(0.1, 0.2)), "mean has 2 values"),
        (ModelInput(std=(0.0,)), r"std of model .* is \[0\.0\]"),
    ],
)
def test_stated_input_that_contradicts_the_model_is_refused(tmp_path: Path, given: ModelInput, message: str) -> None:
    path = write_mean_model(tmp_path / "m.onnx", ["n", 2, 2, 3], layout="NHWC", dtype=TensorProto.FLOAT)
    with pytest.raises(ModelError, match=message):
        OnnxModel(load_release(path, given=given))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.onnx", b"", "damaged or not an ONNX model"),
        ("text.onnx", b"hello, I am no model", "damaged or not an ONNX model"),
        ("model.pt", b"PK", "not an .onnx file"),
    ],
)
def test_a_file_that_is_no_model_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ModelError, match=message) as refused:
        OnnxModel(load_release(path))
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_truncated_model_is_named(tmp_path: Path) -> None:
    path = tmp_path / "half.onnx"
    path.write_bytes((SHIPPED / "digits-small.onnx").read_bytes()[:40_000])
    with pytest.raises(ModelError, match=r"half\.onnx is damaged"):
        OnnxModel(load_release(path))


def test_missing_models_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no model file .*gone\.onnx"):
        load_release(tmp_path / "gone.onnx")
    with pytest.raises(ModelError, match="choose one of digits-large, digits-small"):
        load_release("builtin:digits-huge")


def test_a_model_that_is_not_its_cards_is_refused(tmp_path: Path) -> None:
    for suffix in (".onnx", ".json"):
        shutil.copy(SHIPPED / f"digits-small{suffix}", tmp_path)
    path = tmp_path / "digits-small.onnx"
    load_release(path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"its card digits-small\.json says"):
        load_release(path)


@pytest.mark.parametrize("damage", [b"", b"[]", b'{"name": "x"}', b"\xff\xfe"])
def test_a_damaged_card_is_named(tmp_path: Path, damage: bytes) -> None:
    path = write_mean_model(tmp_path / "m.onnx", ["n", 2, 2], layout="NHW")
    path.with_suffix(".json").write_bytes(damage)
    with pytest.raises(ModelError, match=r"m\.json is not a model card"):
        load_release(path)


@pytest.mark.parametrize(("field", "value"), [("temperature", 0), ("threshold", 1.5)])
def test_a_card_outside_its_range_is_refused(tmp_path: Path, field: str, value: float) -> None:
    path = tmp_path / "digits-small.onnx"
    shutil.copy(SHIPPED / path.name, path)
    card = msgspec.json.decode((SHIPPED / "digits-small.json").read_bytes())
    path.with_suffix(".json").write_bytes(msgspec.json.encode({**card, field: value}))
    with pytest.raises(ModelError, match=field):
        load_release(path)


def named_head(labels: tuple[str, ...], temperature: float) -> Head:
    return Classify(labels, 2 * temperature)


def test_heads_are_found_by_name_and_by_path() -> None:
    assert find_head("classify") is Classify
    assert find_head(f"{__name__}:named_head")(("a", "b"), 1.0).read(np.zeros((1, 2), np.float32)).confidence == 0.5
    for name in ("nothing", "no.such.module:head", f"{__name__}:nothing", f"{__name__}:SHIPPED_NAMES"):
        with pytest.raises(ModelError, match="head '"):
            find_head(name)


def test_probabilities_and_logits_give_the_same_answers(tmp_path: Path) -> None:
    answers = []
    for softmax in (False, True):
        path = write_mean_model(
            tmp_path / f"{softmax}.onnx", ["n", 2, 2], layout="NHW", dtype=TensorProto.FLOAT, softmax=softmax
        )
        outputs = OnnxModel(load_release(path)).run(images(20, 2, 2))
        answers.append(Classify(("a", "b", "c"), temperature=1.5).read(outputs))
    np.testing.assert_array_equal(answers[0].label, answers[1].label)
    np.testing.assert_allclose(answers[0].confidence, answers[1].confidence, rtol=1e-4)


def test_a_row_that_is_not_finite_is_never_trusted() -> None:
    outputs = np.array([[1, np.nan, 0], [0, np.inf, 0], [5, 0, 0]], np.float32)
    confidence = Classify(("a", "b", "c")).read(outputs).confidence
    assert confidence[0] == confidence[1] == 0
    assert confidence[2] > 0.9
