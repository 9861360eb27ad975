"""Makes whole models of the EfficientNet-Lite0 trunk and the heads in models/heads, with nothing but the standard library.

The trunk is the fetched model `photo` without its last layer: 1280 features of a picture. Each head is one dense layer
with a softmax, trained by train_heads.py and committed as an array of [1 + 1280, classes] float16: the bias, then the
weights. A model of the repository that this writes is the photo model's file with another last layer, as transfer
learning makes them: whoever serves it is not told that its siblings share the rest.

    python3 models/heads.py [REPOSITORY]    default: models/fetched/heads
"""

import ast
import struct
import sys
from pathlib import Path

import onnx_file as onnx

MODELS = Path(__file__).resolve().parent
PHOTO = MODELS / "fetched/repository/photo/1/model.onnx"
HEADS = MODELS / "heads"
FEATURES = 1280
LENGTH_DELIMITED = 2
# Field numbers of onnx.proto3.
GRAPH, NODE, INITIALIZER, OUTPUT = 7, 1, 5, 12
TENSOR_NAME, NODE_OUTPUT = 8, 2


def fields(message):
    """(field number, wire type, value, bytes of the whole field) of a protobuf message, in order."""
    at = 0
    while at < len(message):
        begin = at
        key, at = _varint(message, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(message, at)
        elif kind == LENGTH_DELIMITED:
            size, at = _varint(message, at)
            value, at = message[at : at + size], at + size
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
            value, at = message[at : at + size], at + size
        else:
            raise ValueError(f"wire type {kind} at byte {begin}")
        if at > len(message):
            raise ValueError(f"the field at byte {begin} is cut")
        yield key >> 3, kind, value, message[begin:at]


def _varint(message, at):
    number = shift = 0
    while True:
        byte = message[at]
        number |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return number, at


def _first(message, field):
    return next((bytes(value) for number, _, value, _ in fields(message) if number == field), None)


def with_head(photo, weights, bias):
    """The photo model's file with another last layer: `weights` [classes, 1280] and `bias` [classes] are bytes of float32."""
    classes = len(bias) // 4
    new = {
        b"_fc.weight": onnx.tensor("_fc.weight", [classes, FEATURES], weights),
        b"_fc.bias": onnx.tensor("_fc.bias", [classes], bias),
    }
    output = onnx.value("probabilities", ["batch", classes])
    return _with_graph(photo, lambda number, value, field: _head_field(number, value, field, new, output))


def _head_field(number, value, field, new, output):
    if number == INITIALIZER:
        tensor = new.get(_first(value, TENSOR_NAME))
        return field if tensor is None else onnx._bytes(INITIALIZER, tensor)
    return onnx._bytes(OUTPUT, output) if number == OUTPUT else field


def trunk(photo):
    """The photo model's file up to its features [batch, 1280]."""
    output = onnx.value("features", ["batch", FEATURES])

    def change(number, value, field):
        if number == NODE and _first(value, NODE_OUTPUT) in (b"logits", b"probabilities"):
            return b""
        if number == INITIALIZER and _first(value, TENSOR_NAME).startswith(b"_fc."):
            return b""
        return onnx._bytes(OUTPUT, output) if number == OUTPUT else field

    return _with_graph(photo, change)


def _with_graph(photo, change):
    out = []
    for number, _, value, field in fields(photo):
        if number == GRAPH:
            graph = b"".join(bytes(change(*part)) for part in ((n, v, f) for n, _, v, f in fields(value)))
            field = onnx._bytes(GRAPH, graph)
        out.append(bytes(field))
    return b"".join(out)


def read_head(path):
    """(weights [classes, 1280], bias [classes]) as bytes of float32, of a committed head."""
    data = path.read_bytes()
    (size,) = struct.unpack("<H", data[8:10])
    header = ast.literal_eval(data[10 : 10 + size].decode())
    rows, classes = header["shape"]
    if header["descr"] != "<f2" or header["fortran_order"] or rows != FEATURES + 1:
        raise ValueError(f"{path}: {header}, want float16 [{FEATURES + 1}, classes]")
    values = struct.unpack(f"<{rows * classes}e", data[10 + size :])
    bias = struct.pack(f"<{classes}f", *values[:classes])
    columns = [values[classes + column :: classes] for column in range(classes)]
    return b"".join(struct.pack(f"<{FEATURES}f", *column) for column in columns), bias


def main():
    repository = Path(sys.argv[1]) if len(sys.argv) > 1 else MODELS / "fetched/heads"
    if not PHOTO.exists():
        sys.exit(f"heads.py: {PHOTO} is missing; run models/fetch.py first")
    photo = memoryview(PHOTO.read_bytes())
    for head in sorted(HEADS.glob("*.npy")):
        folder = repository / head.stem
        (folder / "1").mkdir(parents=True, exist_ok=True)
        (folder / "1/model.onnx").write_bytes(with_head(photo, *read_head(head)))
        labels = HEADS / f"{head.stem}.txt"
        (folder / "model.toml").write_text(f"# Classes: {', '.join(labels.read_text().split())}.\nslo_ms = 400.0\nmax_batch = 8\n")
        print(f"heads: {folder}")


if __name__ == "__main__":
    main()
