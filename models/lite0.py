"""Turns the published EfficientNet-Lite0 weights (a PyTorch file) into ONNX, with nothing but the standard library.

The file is PyTorch's old format: pickles that describe the tensors, then the raw storages. Only the three constructors
that such a file needs may be called while it is read, so a doctored file cannot run code. The weights came from
TensorFlow and are stored with TensorFlow's axis order behind PyTorch's shapes: a tensor's strides say where its elements
really lie, and are followed here.

Every batch normalisation is folded into the convolution before it, and TensorFlow's "same" padding (which puts the odd
row or column at the end) is written out as explicit pads for 224 x 224 pictures.

    python3 models/lite0.py WEIGHTS.pth MODEL.onnx
"""

import io
import math
import pickle
import struct
import sys
from array import array
from collections import OrderedDict
from itertools import product

import onnx_file as onnx

SIDE = 224
CLASSES = 1000
BATCH_NORM_EPSILON = 1e-3
# Repeats, kernel, stride of the first, expansion, channels in and out: the seven stages of EfficientNet-Lite0.
STAGES = [
    (1, 3, 1, 1, 32, 16),
    (2, 3, 2, 6, 16, 24),
    (2, 5, 2, 6, 24, 40),
    (3, 3, 2, 6, 40, 80),
    (3, 5, 1, 6, 80, 112),
    (4, 5, 2, 6, 112, 192),
    (1, 3, 1, 6, 192, 320),
]


class WeightsError(ValueError):
    """The weights file is not what this script can read."""


class _Tensor:
    """Where a tensor's elements lie: in `storage` from `offset` on, `strides` apart. Counts are elements."""

    def __init__(self, storage, offset, shape, strides, *_ignored):
        self.storage, self.offset, self.shape, self.strides = storage, offset, shape, strides


class _Unpickler(pickle.Unpickler):
    """Knows the constructors of a state dictionary and refuses any other."""

    ALLOWED = {
        ("collections", "OrderedDict"): OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2"): _Tensor,
        ("torch", "FloatStorage"): "f",
        ("torch", "LongStorage"): "q",
    }

    def __init__(self, file):
        super().__init__(file)
        self.storages = {}

    def find_class(self, module, name):
        try:
            return self.ALLOWED[module, name]
        except KeyError:
            raise WeightsError(f"the weights ask for {module}.{name}, which no state dictionary needs") from None

    def persistent_load(self, reference):
        kind, typecode, key, *_place = reference
        if kind != "storage":
            raise WeightsError(f"the weights hold a {kind!r} where only storages belong")
        return self.storages.setdefault(key, array(typecode))


def read_weights(data):
    """The state dictionary of a PyTorch file in the old format: name -> (shape, float32 elements, row-major)."""
    file = io.BytesIO(data)
    try:
        if _Unpickler(file).load() != 0x1950A86A20F9469CFC6C:
            raise WeightsError("the weights lack the mark of PyTorch's old format")
        _Unpickler(file).load()  # the format's version
        _Unpickler(file).load()  # the writer's byte order; the fields below are little-endian in any case
        reader = _Unpickler(file)
        state = reader.load()
        for key in _Unpickler(file).load():
            (count,) = struct.unpack("<q", file.read(8))
            storage = reader.storages[key]
            storage.frombytes(file.read(count * storage.itemsize))
            if sys.byteorder != "little":
                storage.byteswap()
            if len(storage) != count:
                raise WeightsError(f"storage {key} has {len(storage)} of its {count} elements")
    except WeightsError:
        raise
    except (pickle.UnpicklingError, EOFError, KeyError, TypeError, ValueError, struct.error) as error:
        raise WeightsError(f"the weights are damaged: {error!r}") from error
    return {name: (t.shape, _row_major(t)) for name, t in state.items() if t.storage.typecode == "f"}


def _row_major(tensor):
    axes = [(n, stride) for n, stride in zip(tensor.shape, tensor.strides) if n > 1]
    if not axes:
        return tensor.storage[tensor.offset : tensor.offset + 1]
    *outer, (count, stride) = axes
    elements = array("f")
    for index in product(*(range(n) for n, _ in outer)):
        start = tensor.offset + sum(i * s for i, (_, s) in zip(index, outer))
        elements.extend(tensor.storage[start : start + (count - 1) * stride + 1 : stride])
    return elements


class _Builder:
    """Collects the graph, one layer after another, on the weights of a state dictionary."""

    def __init__(self, weights):
        self.weights = weights
        self.nodes = []
        self.initializers = [onnx.floats("relu6_low", [], [0]), onnx.floats("relu6_high", [], [6])]

    def take(self, name, shape):
        got, elements = self.weights.get(name, (None, None))
        if got is None or list(got) != list(shape):
            raise WeightsError(f"{name}: shape {got and list(got)}, want {list(shape)}")
        return elements

    def convolution(self, x, name, norm, shape, side, stride=1, groups=1, relu6=True):
        """Adds a convolution with its normalisation (and ReLU6); returns its output's name and side in pixels."""
        filters, kernel = shape[0], shape[2]
        gain, shift, mean, variance = (
            self.take(f"{norm}.{part}", [filters]) for part in ("weight", "bias", "running_mean", "running_var")
        )
        elements = self.take(f"{name}.weight", shape)
        each = len(elements) // filters
        folded, bias = array("f"), array("f")
        for f in range(filters):
            scale = gain[f] / math.sqrt(variance[f] + BATCH_NORM_EPSILON)
            folded.extend([w * scale for w in elements[f * each : (f + 1) * each]])
            bias.append(shift[f] - mean[f] * scale)
        self.initializers.append(onnx.tensor(f"{name}.weight", shape, _little_endian(folded)))
        self.initializers.append(onnx.tensor(f"{name}.bias", [filters], _little_endian(bias)))
        out_side = -(-side // stride)
        padding = max((out_side - 1) * stride + kernel - side, 0)
        pads = [padding // 2, padding // 2, padding - padding // 2, padding - padding // 2]
        self.nodes.append(
            onnx.node(
                "Conv",
                [x, f"{name}.weight", f"{name}.bias"],
                [name],
                group=groups,
                kernel_shape=[kernel, kernel],
                pads=pads,
                strides=[stride, stride],
            )
        )
        if relu6:
            self.nodes.append(onnx.node("Clip", [name, "relu6_low", "relu6_high"], [f"{name}.relu6"]))
        return (f"{name}.relu6" if relu6 else name), out_side

    def block(self, x, name, side, kernel, stride, expansion, channels, filters):
        """Adds an inverted residual: widen, convolve each channel alone, narrow."""
        start, wide = x, channels * expansion
        if expansion != 1:
            x, side = self.convolution(x, f"{name}._expand_conv", f"{name}._bn0", [wide, channels, 1, 1], side)
        x, side = self.convolution(
            x, f"{name}._depthwise_conv", f"{name}._bn1", [wide, 1, kernel, kernel], side, stride, groups=wide
        )
        x, side = self.convolution(
            x, f"{name}._project_conv", f"{name}._bn2", [filters, wide, 1, 1], side, relu6=False
        )
        if stride == 1 and channels == filters:
            self.nodes.append(onnx.node("Add", [x, start], [f"{name}.sum"]))
            x = f"{name}.sum"
        return x, side


def convert(data):
    """The ONNX file for the weights file `data`: image [batch, 3, 224, 224] -> probabilities [batch, 1000]."""
    build = _Builder(read_weights(data))
    x, side = build.convolution("image", "_conv_stem", "_bn0", [32, 3, 3, 3], SIDE, stride=2)
    number = 0
    for repeats, kernel, first_stride, expansion, channels, filters in STAGES:
        for repeat in range(repeats):
            stride, width = (first_stride, channels) if repeat == 0 else (1, filters)
            x, side = build.block(x, f"_blocks.{number}", side, kernel, stride, expansion, width, filters)
            number += 1
    x, side = build.convolution(x, "_conv_head", "_bn1", [1280, STAGES[-1][-1], 1, 1], side)
    for name, shape in (("_fc.weight", [CLASSES, 1280]), ("_fc.bias", [CLASSES])):
        build.initializers.append(onnx.tensor(name, shape, _little_endian(build.take(name, shape))))
    build.nodes += [
        onnx.node("GlobalAveragePool", [x], ["pooled"]),
        onnx.node("Flatten", ["pooled"], ["features"], axis=1),
        onnx.node("Gemm", ["features", "_fc.weight", "_fc.bias"], ["logits"], transB=1),
        onnx.node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    inputs = [onnx.value("image", ["batch", 3, SIDE, SIDE])]
    outputs = [onnx.value("probabilities", ["batch", CLASSES])]
    return onnx.model("efficientnet-lite0", build.nodes, inputs, outputs, build.initializers)


def _little_endian(elements):
    if sys.byteorder != "little":
        elements = elements[:]
        elements.byteswap()
    return elements.tobytes()


def main():
    if len(sys.argv) != 3:
        sys.exit("usage: lite0.py WEIGHTS.pth MODEL.onnx")
    with open(sys.argv[1], "rb") as file:
        data = file.read()
    try:
        converted = convert(data)
    except WeightsError as error:
        sys.exit(f"lite0.py: {sys.argv[1]}: {error}")
    with open(sys.argv[2], "wb") as file:
        file.write(converted)


if __name__ == "__main__":
    main()
