"""A trained network as ONNX, node by node: uint8 [n, height, width] in, normalisation inside, logits out.

torch's own exporter needs two more packages, writes a newer opset and is not needed for a chain of common layers.
"""

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from cloud_workers.training.networks import MEAN, STD

OPSET, IR_VERSION = 17, 8
"""Old enough for every ONNX Runtime from 1.12 on."""


def export(network: nn.Sequential, height: int = 28, width: int = 28) -> bytes:
    """The ONNX file of `network`, a chain of layers in evaluation mode. Raises TypeError for an unknown layer."""
    graph = _Graph()
    value = graph.add("Cast", ["images"], to=TensorProto.FLOAT)
    value = graph.add("Mul", [value, graph.constant("gain", np.float32(1 / (255 * STD)))])
    value = graph.add("Add", [value, graph.constant("offset", np.float32(-MEAN / STD))])
    value = graph.add("Unsqueeze", [value, graph.constant("axes", np.array([1], np.int64))])
    for index, layer in enumerate(network):
        value = _add_layer(graph, f"layer{index}", layer, value)
    graph.nodes[-1].output[0] = "logits"
    classes = next(layer.out_features for layer in reversed(network) if isinstance(layer, nn.Linear))
    images = helper.make_tensor_value_info("images", TensorProto.UINT8, ["n", height, width])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", classes])
    model = helper.make_model(
        helper.make_graph(graph.nodes, "digits", [images], [logits], graph.constants),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="tidegate",
    )
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


class _Graph:
    """Nodes and constants as they are added; each node has one output, named after its place."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def add(self, op: str, inputs: list[str], **attributes: Any) -> str:
        output = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [output], **attributes))
        return output

    def constant(self, name: str, value: Any) -> str:
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name


def _add_layer(graph: _Graph, name: str, layer: nn.Module, value: str) -> str:
    def weights(*names: str) -> list[str]:
        state = layer.state_dict()
        return [graph.constant(f"{name}.{key}", state[key].numpy()) for key in names if key in state]

    match layer:
        case nn.Conv2d():
            attributes = {"kernel_shape": layer.kernel_size, "strides": layer.stride, "pads": [*layer.padding] * 2}
            return graph.add("Conv", [value, *weights("weight", "bias")], **attributes)
        case nn.BatchNorm2d():
            inputs = [value, *weights("weight", "bias", "running_mean", "running_var")]
            return graph.add("BatchNormalization", inputs, epsilon=layer.eps)
        case nn.MaxPool2d():
            side = layer.kernel_size
            return graph.add("MaxPool", [value], kernel_shape=[side, side], strides=[layer.stride, layer.stride])
        case nn.ReLU():
            return graph.add("Relu", [value])
        case nn.Flatten():
            return graph.add("Flatten", [value])
        case nn.Linear():
            return graph.add("Gemm", [value, *weights("weight", "bias")], transB=1)
        case nn.Dropout():
            return value
        case _:
            raise TypeError(f"layer {name} is a {type(layer).__name__}, which the export does not know: add it there")
