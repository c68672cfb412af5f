"""What an ONNX file takes: its one image input, read from the file and from what the card states."""

from typing import Any, Literal

import msgspec
import numpy as np

from pipelines.errors import ModelError
from pipelines.models.release import Layout, Release

Dims = list[int | str | None]

_DTYPES: dict[str, Literal["uint8", "float32"]] = {"tensor(uint8)": "uint8", "tensor(float)": "float32"}
_LIKELY_CHANNELS = (1, 3, 4)


class Signature(msgspec.Struct, frozen=True):
    """The input of a model. `item_shape` is height, width, channels; `fixed_items` is the batch size if it is fixed."""

    name: str
    dtype: Literal["uint8", "float32"]
    layout: Layout
    item_shape: tuple[int | None, int | None, int]
    fixed_items: int | None

    def normalisation(self, release: Release) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """`(x * scale - mean) / std` as one gain and one offset, float32, shaped to broadcast over the layout.

        Raises `ModelError` where mean or std do not fit the channels.
        """
        given, channels = release.card.input, self.item_shape[2]
        for name, values in (("mean", given.mean), ("std", given.std)):
            if len(values) not in (1, channels):
                raise ModelError(
                    f"{name} has {len(values)} values, model {release.path.name} has {channels} channels",
                    remedy=f"give {name} one value, or one a channel",
                )
        if not all(value > 0 for value in given.std):
            raise ModelError(f"std of model {release.path.name} is {list(given.std)}", remedy="give a std above 0")
        mean, std = np.array(given.mean), np.array(given.std)
        gain = np.broadcast_to(given.scale / std, channels).astype(np.float32)
        offset = np.broadcast_to(-mean / std, channels).astype(np.float32)
        shape = {"NHW": (1,), "NHWC": (channels,), "NCHW": (channels, 1, 1)}[self.layout]
        return gain.reshape(shape), offset.reshape(shape)


def read_signature(inputs: list[Any], release: Release) -> Signature:
    """The signature of a session's inputs. Raises `ModelError` where images cannot fill them or how is open."""
    if len(inputs) != 1:
        names = ", ".join(node.name for node in inputs)
        raise ModelError(
            f"model {release.path} has {len(inputs)} inputs ({names})", remedy="export it with images as its one input"
        )
    node = inputs[0]
    dims: Dims = list(node.shape)
    if node.type not in _DTYPES or len(dims) not in (3, 4):
        raise ModelError(
            f"model {release.path} takes {node.type}{dims}",
            remedy="export it to take uint8 or float32 as [n, height, width], [n, height, width, channels] "
            "or [n, channels, height, width]",
        )
    dtype, stated = _DTYPES[node.type], release.card.input.dtype
    if stated not in (None, dtype):
        raise ModelError(
            f"model {release.path} takes {dtype}, the stated dtype is {stated}", remedy="correct or remove dtype"
        )
    layout = _layout(dims, release)
    return Signature(
        name=node.name,
        dtype=dtype,
        layout=layout,
        item_shape=_item_shape(layout, dims, release),
        fixed_items=dims[0] if isinstance(dims[0], int) else None,
    )


def _layout(dims: Dims, release: Release) -> Layout:
    stated = release.card.input.layout
    if stated is not None and len(stated) != len(dims):
        raise ModelError(
            f"model {release.path} takes {dims}, the stated layout is {stated}", remedy="correct or remove layout"
        )
    if len(dims) == 3:
        return "NHW"
    if stated is not None:
        return stated
    first, last = dims[1] in _LIKELY_CHANNELS, dims[3] in _LIKELY_CHANNELS
    if first == last:
        raise ModelError(
            f"model {release.path} takes {dims}, which may be NHWC or NCHW",
            remedy="state the layout of its input",
        )
    return "NCHW" if first else "NHWC"


def _item_shape(layout: Layout, dims: Dims, release: Release) -> tuple[int | None, int | None, int]:
    stated = release.card.input
    own: dict[str, int | str | None] = {"C": 1, **dict(zip(layout, dims, strict=True))}
    sides: list[int | None] = []
    for name, value, told in (
        ("height", own["H"], stated.height),
        ("width", own["W"], stated.width),
        ("channels", own["C"], stated.channels),
    ):
        if isinstance(value, int) and told is not None and told != value:
            raise ModelError(
                f"model {release.path} has {name} {value}, stated is {told}",
                remedy=f"correct or remove {name}",
            )
        sides.append(value if isinstance(value, int) else told)
    height, width, channels = sides
    if channels is None:
        raise ModelError(
            f"model {release.path} leaves its channels open",
            remedy="state the channels of its input (1, 3 or 4)",
        )
    return height, width, channels
