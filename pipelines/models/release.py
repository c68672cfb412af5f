"""The release format: NAME.onnx and, beside it, NAME.json, its card.

The card says what the model is, how its confidence is calibrated and what it was seen to do. A model of the user's
own needs no card: it then has numbered labels, temperature 1 and no threshold.
"""

import hashlib
from pathlib import Path
from typing import Literal

import msgspec

from pipelines.errors import ModelError

__all__ = ["Card", "ModelInput", "Release", "load_release"]

SHIPPED = Path(__file__).parent / "shipped"
BUILTIN = "builtin:"

Layout = Literal["NHW", "NHWC", "NCHW"]


class ModelInput(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How items are handed to the model.

    A float32 input gets `(item * scale - mean) / std`, with one mean and std a channel; a uint8 input gets the
    item as it is, for a model that normalises inside. None means: read it from the model file.
    """

    layout: Layout | None = None
    height: int | None = None
    width: int | None = None
    channels: int | None = None
    dtype: Literal["uint8", "float32"] | None = None
    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)


class Accuracy(msgspec.Struct, frozen=True):
    """Share of right answers, 0..1, over `items` items of the set described by `on`."""

    on: str
    items: int
    accuracy: float


class DataUsed(msgspec.Struct, frozen=True):
    """A data set, its licence as commonly stated, and what it was used for."""

    name: str
    licence: str
    use: str


class Card(msgspec.Struct, frozen=True):
    """A model card. `threshold` is the calibrated confidence under which an answer is worth escalating."""

    name: str
    version: str
    labels: tuple[str, ...]
    input: ModelInput
    sha256: str
    size_bytes: int
    head: str = "classify"
    temperature: float = 1.0
    threshold: float | None = None
    accuracy: tuple[Accuracy, ...] = ()
    data: tuple[DataUsed, ...] = ()
    recipe: str = ""

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"temperature is {self.temperature} and must be above 0")
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold is {self.threshold} and must lie in 0..1")


class Release(msgspec.Struct, frozen=True):
    """A model file that was found and agrees with its card. `model_id` is what results name it by."""

    path: Path
    card: Card

    @property
    def model_id(self) -> str:
        """Name and version, for example `digits-small@3f2a91bc04de`."""
        return f"{self.card.name}@{self.card.version}"


def builtin_names() -> list[str]:
    """Names of the models that come with Tidegate."""
    return sorted(path.stem for path in SHIPPED.glob("*.onnx"))


def load_release(ref: str | Path, *, labels: tuple[str, ...] = (), given: ModelInput | None = None) -> Release:
    """Find the release `ref`: `builtin:NAME` or the path of an .onnx file.

    `labels` and `given`, where stated, take the place of the card's. Raises `ModelError` for a file that is
    missing, is no card, or does not have the SHA-256 that its card states. The model itself is read by `OnnxModel`.
    """
    path = _find(str(ref))
    digest = _sha256(path)
    beside = path.with_suffix(".json")
    if beside.exists():
        card = _read_card(beside)
        if card.sha256 != digest:
            raise ModelError(
                f"{path} has SHA-256 {digest[:12]}..., its card {beside.name} says {card.sha256[:12]}...",
                remedy="fetch both again from one release, or remove the card of a model changed on purpose",
            )
    else:
        card = Card(
            name=path.stem,
            version=digest[:12],
            labels=(),
            input=ModelInput(),
            sha256=digest,
            size_bytes=path.stat().st_size,
        )
    if labels:
        card = msgspec.structs.replace(card, labels=labels)
    if given is not None:
        card = msgspec.structs.replace(card, input=given)
    return Release(path=path, card=card)


def write_release(folder: Path, onnx_bytes: bytes, card: Card) -> Release:
    """Write NAME.onnx and NAME.json into `folder`.

    Size and SHA-256 are filled in here, and the version, the first 12 digits of the SHA-256: two files never share one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256(onnx_bytes).hexdigest()
    card = msgspec.structs.replace(card, version=digest[:12], sha256=digest, size_bytes=len(onnx_bytes))
    path = folder / f"{card.name}.onnx"
    path.write_bytes(onnx_bytes)
    text = msgspec.json.format(msgspec.json.encode(card), indent=2)
    path.with_suffix(".json").write_bytes(text + b"\n")
    return Release(path=path, card=card)


def _find(ref: str) -> Path:
    if ref.startswith(BUILTIN):
        name = ref.removeprefix(BUILTIN)
        known = builtin_names()
        if name not in known:
            raise ModelError(f"there is no built-in model '{name}'", remedy=f"choose one of {', '.join(known)}")
        return SHIPPED / f"{name}.onnx"
    path = Path(ref).expanduser()
    if path.suffix != ".onnx":
        raise ModelError(f"{path} is not an .onnx file", remedy="export the model to ONNX and name that file")
    if not path.is_file():
        raise ModelError(f"there is no model file {path}", remedy="correct the path of the model")
    return path


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error.strerror})", remedy="make the file readable") from error


def _read_card(path: Path) -> Card:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Card)
    except (OSError, msgspec.DecodeError) as error:
        raise ModelError(
            f"{path} is not a model card ({error})", remedy="mend it, or move it away from beside the model"
        ) from error
