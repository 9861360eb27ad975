"""Writes the models that the tests run: a few kilobytes each, one property each.

    python -m pip install onnx==1.23.2 numpy && python device/tests/models/make.py
"""

from pathlib import Path

import numpy as np
from onnx import TensorProto, checker, helper, numpy_helper, save

FOLDER = Path(__file__).parent
F16, F32, F64 = TensorProto.FLOAT16, TensorProto.FLOAT, TensorProto.DOUBLE
I32, I64, BOOL = TensorProto.INT32, TensorProto.INT64, TensorProto.BOOL
random = np.random.default_rng(7)


def weight(name, *shape):
    return numpy_helper.from_array(random.standard_normal(shape).astype(np.float32), name)


def constant(name, value, dtype):
    return numpy_helper.from_array(np.array(value, dtype), name)


def model(name, inputs, outputs, nodes, weights=()):
    value = lambda spec: helper.make_tensor_value_info(*spec)
    graph = helper.make_graph(
        [helper.make_node(op, ins, outs, **attributes) for op, ins, outs, attributes in nodes],
        name,
        [value(spec) for spec in inputs],
        [value(spec) for spec in outputs],
        list(weights),
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    checker.check_model(made)
    save(made, FOLDER / f"{name}.onnx")


# Two layers; the plain case.
model(
    "mlp",
    [("x", F32, ["batch", 16])],
    [("y", F32, ["batch", 4])],
    [
        ("Gemm", ["x", "w1", "b1"], ["h"], {}),
        ("Relu", ["h"], ["r"], {}),
        ("Gemm", ["r", "w2", "b2"], ["y"], {}),
    ],
    [weight("w1", 16, 32), weight("b1", 32), weight("w2", 32, 4), weight("b2", 4)],
)

# An index out of range fails the whole run.
model(
    "gather",
    [("index", I64, ["batch", 2])],
    [("y", F32, ["batch", 2, 4])],
    [("Gather", ["table", "index"], ["y"], {"axis": 0})],
    [weight("table", 8, 4)],
)

# A recurrent state, batched along axis 1.
model(
    "state",
    [("x", F32, ["batch", 3]), ("state", F32, [2, "batch", 3])],
    [("y", F32, ["batch", 3]), ("next", F32, [2, "batch", 3])],
    [
        ("MatMul", ["x", "w"], ["p"], {}),
        ("ReduceSum", ["state", "zero"], ["s"], {"keepdims": 0}),
        ("Add", ["p", "s"], ["y"], {}),
        ("Add", ["state", "y"], ["next"], {}),
    ],
    [weight("w", 3, 3), constant("zero", [0], np.int64)],
)

# No dynamic dimension at all.
model(
    "fixed",
    [("x", F32, [2, 4])],
    [("y", F32, [2, 4])],
    [("Softmax", ["x"], ["y"], {"axis": 1})],
)

model(
    "half",
    [("x", F16, ["batch", 8])],
    [("y", F16, ["batch", 8])],
    [("Mul", ["x", "x"], ["s"], {}), ("Add", ["s", "x"], ["y"], {})],
)

model(
    "double",
    [("x", F64, ["batch", 4])],
    [("y", F64, ["batch", 4])],
    [("Add", ["x", "x"], ["y"], {})],
)

# Integers and booleans both ways.
model(
    "flags",
    [("a", I64, ["batch", 4]), ("keep", BOOL, ["batch", 4])],
    [("kept", I64, ["batch", 4]), ("large", BOOL, ["batch", 4]), ("narrow", I32, ["batch", 4])],
    [
        ("Where", ["keep", "a", "none"], ["kept"], {}),
        ("Greater", ["a", "two"], ["large"], {}),
        ("Cast", ["kept"], ["narrow"], {"to": I32}),
    ],
    [constant("none", -1, np.int64), constant("two", 2, np.int64)],
)

# The answer to one item depends on the others in its batch.
model(
    "mixing",
    [("x", F32, ["batch", 4])],
    [("y", F32, ["batch", 4])],
    [("ReduceMean", ["x"], ["m"], {"axes": [0]}), ("Sub", ["x", "m"], ["y"], {})],
)

# The output's batch axis has another name, and is its last.
model(
    "transposed",
    [("x", F32, ["batch", 3])],
    [("y", F32, [3, "columns"])],
    [("Transpose", ["x"], ["y"], {"perm": [1, 0]})],
)

# The items' rows lie one after another: no axis holds the batch.
model(
    "flattened",
    [("x", F32, ["batch", 3])],
    [("y", F32, ["rows"])],
    [("Reshape", ["x", "all"], ["y"], {})],
    [constant("all", [-1], np.int64)],
)

# An input that all items share, and an output that does not depend on any item.
model(
    "shared",
    [("x", F32, ["batch", 4]), ("scale", F32, [4])],
    [("y", F32, ["batch", 4]), ("twice", F32, [4])],
    [("Mul", ["x", "scale"], ["y"], {}), ("Add", ["scale", "scale"], ["twice"], {})],
)

# A width that each request chooses, in steps of 8.
model(
    "width",
    [("x", F32, ["batch", 3, "width"])],
    [("y", F32, ["batch", 3, "eighth", 8])],
    [("Reshape", ["x", "eights"], ["y"], {})],
    [constant("eights", [0, 3, -1, 8], np.int64)],
)

# The answer depends on how many items share a batch, not on which: by half a percent, as rounding might, and by far more.
for name, part in [("rounding", 0.005), ("sized", 0.1)]:
    model(
        name,
        [("x", F32, ["batch", 4])],
        [("y", F32, ["batch", 4])],
        [
            ("Shape", ["x"], ["shape"], {"end": 1}),
            ("Cast", ["shape"], ["items"], {"to": F32}),
            ("Sub", ["items", "one"], ["others"], {}),
            ("Min", ["others", "one"], ["shared"], {}),
            ("Mul", ["shared", "part"], ["more"], {}),
            ("Add", ["more", "one"], ["factor"], {}),
            ("Mul", ["x", "factor"], ["y"], {}),
        ],
        [constant("one", [1], np.float32), constant("part", [part], np.float32)],
    )

# Little of the others, which must not pass for rounding.
model(
    "tinged",
    [("x", F32, ["batch", 4])],
    [("y", F32, ["batch", 4])],
    [
        ("ReduceMean", ["x"], ["m"], {"axes": [0]}),
        ("Mul", ["m", "part"], ["p"], {}),
        ("Add", ["x", "p"], ["y"], {}),
    ],
    [constant("part", [0.02], np.float32)],
)
