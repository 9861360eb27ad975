"""Trains the small models in models/tiny and writes their repository, inputs, labels and manifest.

Three networks for one task, the handwritten digits (8 x 8 pixels) that scikit-learn ships: one of fully connected
layers, one of convolutions, and a recurrent one that sees a digit row by row and carries its state from request to
request. They are small enough to commit, so that the daemon can be tried and tested where nothing can be fetched.

Needs numpy (requirements-train.txt); the digits are read out of scikit-learn's wheel, which pip downloads and nobody
installs. Seeded; another numpy or processor may still round differently, so the files are committed, not rebuilt.

    python3 models/train_tiny.py
"""

import gzip
import json
import tempfile
import zipfile
from pathlib import Path

import numpy as np

import fetch
import onnx_file as onnx

MODELS = Path(__file__).resolve().parent
TINY = MODELS / "tiny"
HELD_OUT = 360  # of 1797
SAMPLES = 40  # held-out digits that are committed as inputs
SIDE = 8
CLASSES = 10
STATE = 48
EPOCHS = 60
BATCH = 32
RATE = 2e-3
WEIGHT_DECAY = 1e-4


def digits():
    """(pixels in 0..1 [n, 64], digit [n]), shuffled; the last HELD_OUT are not trained on."""
    requirement = fetch.read_requirements(MODELS / "requirements-train.txt")["scikit-learn"]
    with tempfile.TemporaryDirectory() as folder:
        fetch.pip_download(requirement, Path(folder))
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            table = gzip.decompress(archive.read("sklearn/datasets/data/digits.csv.gz")).decode()
    rows = np.array([[float(x) for x in line.split(",")] for line in table.splitlines()], np.float32)
    rows = rows[np.random.default_rng(0).permutation(len(rows))]
    return rows[:, :-1] / 16, rows[:, -1].astype(int)


class Mlp:
    """64 -> 128 -> 64 -> 10, ReLU between."""

    name, about = "digits-mlp", "which digit, by fully connected layers"
    sizes = [SIDE * SIDE, 128, 64, CLASSES]
    inputs = [("pixels", [SIDE * SIDE])]

    def __init__(self, random):
        self.weights = {}
        for i, (n, m) in enumerate(zip(self.sizes, self.sizes[1:])):
            self.weights[f"w{i}"], self.weights[f"b{i}"] = _matrix(random, n, m), np.zeros(m)

    def forward(self, x):
        """Logits, and what `backward` needs."""
        kept = [x]
        for i in range(3):
            x = x @ self.weights[f"w{i}"] + self.weights[f"b{i}"]
            if i < 2:
                x = np.maximum(x, 0)
                kept.append(x)
        return x, kept

    def backward(self, slope, kept):
        """The gradient of every weight, from that of the logits."""
        gradient = {}
        for i in (2, 1, 0):
            gradient[f"w{i}"], gradient[f"b{i}"] = kept[i].T @ slope, slope.sum(0)
            slope = (slope @ self.weights[f"w{i}"].T) * (kept[i] > 0)
        return gradient

    def nodes(self):
        nodes, x = [], "pixels"
        for i in range(3):
            nodes.append(onnx.node("Gemm", [x, f"w{i}", f"b{i}"], [f"dense{i}"]))
            x = f"dense{i}"
            if i < 2:
                nodes.append(onnx.node("Relu", [x], [f"relu{i}"]))
                x = f"relu{i}"
        return nodes, x

    def tensors(self):
        return self.weights


class Conv:
    """Two 3 x 3 convolutions (16, then 32 of stride 2), ReLU, one dense layer."""

    name, about = "digits-conv", "which digit, by convolutions"
    inputs = [("picture", [1, SIDE, SIDE])]

    def __init__(self, random):
        self.weights = {
            "w0": _matrix(random, 9, 16),
            "b0": np.zeros(16),
            "w1": _matrix(random, 9 * 16, 32),
            "b1": np.zeros(32),
            "w2": _matrix(random, 32 * 16, CLASSES),
            "b2": np.zeros(CLASSES),
        }

    def forward(self, x):
        w = self.weights
        patches0 = _patches(x.reshape(-1, SIDE, SIDE, 1), 1)
        a = np.maximum(patches0 @ w["w0"] + w["b0"], 0)
        patches1 = _patches(a, 2)
        b = np.maximum(patches1 @ w["w1"] + w["b1"], 0)
        flat = b.reshape(len(x), -1)
        return flat @ w["w2"] + w["b2"], (patches0, a, patches1, b, flat)

    def backward(self, slope, kept):
        patches0, a, patches1, b, flat = kept
        gradient = {"w2": flat.T @ slope, "b2": slope.sum(0)}
        slope = (slope @ self.weights["w2"].T).reshape(b.shape) * (b > 0)
        gradient["w1"], gradient["b1"] = np.tensordot(patches1, slope, ([0, 1, 2], [0, 1, 2])), slope.sum((0, 1, 2))
        slope = _unpatch(slope @ self.weights["w1"].T, 2, a.shape) * (a > 0)
        gradient["w0"], gradient["b0"] = np.tensordot(patches0, slope, ([0, 1, 2], [0, 1, 2])), slope.sum((0, 1, 2))
        return gradient

    def nodes(self):
        nodes, x = [], "picture"
        for i, stride in ((0, 1), (1, 2)):
            shape = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [stride, stride]}
            nodes.append(onnx.node("Conv", [x, f"w{i}", f"b{i}"], [f"conv{i}"], **shape))
            nodes.append(onnx.node("Relu", [f"conv{i}"], [f"relu{i}"]))
            x = f"relu{i}"
        nodes.append(onnx.node("Flatten", [x], ["flat"], axis=1))
        nodes.append(onnx.node("Gemm", ["flat", "w2", "b2"], ["logits"]))
        return nodes, "logits"

    def tensors(self):
        """Here channels are innermost, in ONNX they come before the picture's axes."""
        w = dict(self.weights)
        w["w0"] = w["w0"].reshape(3, 3, 1, 16).transpose(3, 2, 0, 1)
        w["w1"] = w["w1"].reshape(3, 3, 16, 32).transpose(3, 2, 0, 1)
        w["w2"] = w["w2"].reshape(4, 4, 32, CLASSES).transpose(2, 0, 1, 3).reshape(-1, CLASSES)
        return w


class Gru:
    """One gated recurrent cell that takes a row of a digit at a time, and a dense layer on its state.

    Gates are in ONNX's order (update, reset, candidate), with the reset gate after the recurrent product.
    """

    name, about = "digits-gru", "which digit, row by row; the state travels with the requests"
    inputs = [("row", [SIDE])]

    def __init__(self, random):
        self.weights = {
            "w": np.concatenate([_matrix(random, SIDE, STATE) for _ in range(3)], 1),
            "r": np.concatenate([_matrix(random, STATE, STATE) * 0.5 for _ in range(3)], 1),
            "bw": np.zeros(3 * STATE),
            "br": np.zeros(3 * STATE),
            "wo": _matrix(random, STATE, CLASSES),
            "bo": np.zeros(CLASSES),
        }

    def forward(self, x):
        w, n, kept = self.weights, STATE, []
        h = np.zeros((len(x), n))
        for row in x.reshape(-1, SIDE, SIDE).transpose(1, 0, 2):
            left, right = row @ w["w"] + w["bw"], h @ w["r"] + w["br"]
            z, r = np.split(_sigmoid(left[:, : 2 * n] + right[:, : 2 * n]), 2, 1)
            c = np.tanh(left[:, 2 * n :] + r * right[:, 2 * n :])
            kept.append((row, h, z, r, c, right[:, 2 * n :]))
            h = (1 - z) * c + z * h
        return h @ w["wo"] + w["bo"], (kept, h)

    def backward(self, slope, kept):
        rows, last = kept
        gradient = {name: np.zeros_like(value) for name, value in self.weights.items()}
        gradient["wo"], gradient["bo"] = last.T @ slope, slope.sum(0)
        slope = slope @ self.weights["wo"].T
        for row, h, z, r, c, right in reversed(rows):
            candidate = slope * (1 - z) * (1 - c * c)
            update = slope * (h - c) * z * (1 - z)
            reset = candidate * right * r * (1 - r)
            left = np.concatenate([update, reset, candidate], 1)
            recurrent = np.concatenate([update, reset, candidate * r], 1)
            gradient["w"] += row.T @ left
            gradient["bw"] += left.sum(0)
            gradient["r"] += h.T @ recurrent
            gradient["br"] += recurrent.sum(0)
            slope = slope * z + recurrent @ self.weights["r"].T
        return gradient

    def nodes(self):
        return [
            onnx.node("Unsqueeze", ["row", "first_axis"], ["sequence"]),
            onnx.node(
                "GRU",
                ["sequence", "w", "r", "b", "", "state"],
                ["states", "next_state"],
                hidden_size=STATE,
                linear_before_reset=1,
            ),
            onnx.node("Squeeze", ["next_state", "first_axis"], ["seen"]),
            onnx.node("Gemm", ["seen", "wo", "bo"], ["logits"]),
        ], "logits"

    def tensors(self):
        w = self.weights
        both = np.concatenate([w["bw"], w["br"]])[None]
        return {"w": w["w"].T[None], "r": w["r"].T[None], "b": both, "wo": w["wo"], "bo": w["bo"]}


def train(model, x, y):
    """Adam on the cross-entropy, the rate falling to nothing over the epochs."""
    random, step = np.random.default_rng(1), 0
    first = {name: np.zeros_like(value) for name, value in model.weights.items()}
    second = {name: np.zeros_like(value) for name, value in model.weights.items()}
    steps = EPOCHS * (len(x) // BATCH)
    for _ in range(EPOCHS):
        order = random.permutation(len(x))
        for start in range(0, len(x) - BATCH + 1, BATCH):
            chosen = order[start : start + BATCH]
            logits, kept = model.forward(x[chosen])
            slope = (_softmax(logits) - np.eye(CLASSES)[y[chosen]]) / BATCH
            step += 1
            rate = RATE * (1 - (step - 1) / steps)
            for name, gradient in model.backward(slope, kept).items():
                first[name] = 0.9 * first[name] + 0.1 * gradient
                second[name] = 0.999 * second[name] + 0.001 * gradient**2
                towards = first[name] / (1 - 0.9**step) / (np.sqrt(second[name] / (1 - 0.999**step)) + 1e-8)
                model.weights[name] -= rate * (towards + WEIGHT_DECAY * model.weights[name])


def write(model):
    """models/tiny/repository/<name>: the ONNX file and its model.toml."""
    nodes, logits = model.nodes()
    nodes.append(onnx.node("Softmax", [logits], ["probabilities"], axis=1))
    tensors = [onnx.floats(name, v.shape, v.astype(np.float32).ravel().tolist()) for name, v in model.tensors().items()]
    inputs = [onnx.value(name, ["batch", *dims]) for name, dims in model.inputs]
    outputs = [onnx.value("probabilities", ["batch", CLASSES])]
    if isinstance(model, Gru):
        tensors.append(onnx.int64s("first_axis", [1], [0]))
        inputs.append(onnx.value("state", [1, "batch", STATE]))
        outputs.append(onnx.value("next_state", [1, "batch", STATE]))
    folder = TINY / "repository" / model.name
    (folder / "1").mkdir(parents=True, exist_ok=True)
    (folder / "1/model.onnx").write_bytes(onnx.model(model.name, nodes, inputs, outputs, tensors))
    (folder / "model.toml").write_text(f"# Digits (8 x 8): {model.about}.\nslo_ms = 20.0\nmax_batch = 64\n")


def describe(model, x, y):
    """The model's entry in the manifest, on the held-out digits x, whose array it writes too."""
    name, dims = model.inputs[0]
    requests = SIDE if isinstance(model, Gru) else 1  # a digit is that many requests
    place = f"inputs/{model.name}.npy"
    _save(place, x.reshape([len(x) * requests, *dims]))
    inputs = {name: place}
    if isinstance(model, Gru):
        inputs["state"] = "inputs/digits-gru-state.npy"
        _save(inputs["state"], np.zeros((1, 1, STATE)))
    answers = model.forward(x)[0].argmax(1)
    items = []
    for k in range(len(x)):
        item = {"name": f"digit {k:02}", "inputs": inputs, "rows": [k * requests, requests]}
        items.append({**item, "expect": [str(answers[k])], "truth": str(y[k])})
    entry = {"name": model.name, "about": model.about, "package": "trained by models/train_tiny.py"}
    entry |= {"licence": "Apache-2.0", "task": "label", "output": "probabilities", "labels": "labels/digits.txt"}
    entry["row_inputs"] = [name]
    if isinstance(model, Gru):
        entry["feedback"] = {"state": "next_state"}
    return {**entry, "items": items}


def main():
    x, y = digits()
    entries = []
    for kind in (Mlp, Conv, Gru):
        model = kind(np.random.default_rng(2))
        train(model, x[:-HELD_OUT], y[:-HELD_OUT])
        right = (model.forward(x[-HELD_OUT:])[0].argmax(1) == y[-HELD_OUT:]).mean()
        write(model)
        entries.append(describe(model, x[-HELD_OUT:][:SAMPLES], y[-HELD_OUT:][:SAMPLES]))
        print(f"{model.name}: {right:.3f} of {HELD_OUT} held-out digits right")
    (TINY / "labels").mkdir(exist_ok=True)
    (TINY / "labels/digits.txt").write_text("".join(f"{digit}\n" for digit in range(CLASSES)))
    write_manifest(TINY / "manifest.json", entries)


def write_manifest(path, entries):
    """The manifest with an item a line, so that a change to one can be read."""
    models = []
    for entry in entries:
        items = ",\n".join("    " + json.dumps(item) for item in entry["items"])
        head = json.dumps({key: value for key, value in entry.items() if key != "items"})
        models.append(f'  {head[:-1]}, "items": [\n{items}]}}')
    path.write_text('{"schema": 1, "repository": "repository", "models": [\n' + ",\n".join(models) + "\n]}\n")


def _save(place, values):
    (TINY / place).parent.mkdir(parents=True, exist_ok=True)
    np.save(TINY / place, np.ascontiguousarray(values, np.float32))


def _matrix(random, n, m):
    return random.standard_normal((n, m)) * np.sqrt(2 / n)


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))


def _softmax(x):
    powers = np.exp(x - x.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def _patches(x, stride):
    """The 3 x 3 neighbourhoods of pictures [n, h, w, c], zeros around: [n, h/stride, w/stride, 9c]."""
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    h, w = x.shape[1:3]
    shifted = [padded[:, i : i + h : stride, j : j + w : stride] for i in range(3) for j in range(3)]
    return np.concatenate(shifted, 3)


def _unpatch(slopes, stride, shape):
    """The gradient of `_patches`: adds every neighbourhood back to where it came from."""
    n, h, w, c = shape
    padded = np.zeros((n, h + 2, w + 2, c))
    for k, part in enumerate(np.split(slopes, 9, 3)):
        i, j = divmod(k, 3)
        padded[:, i : i + h : stride, j : j + w : stride] += part
    return padded[:, 1:-1, 1:-1]


if __name__ == "__main__":
    main()
