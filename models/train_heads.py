"""Trains the heads in models/heads: small specialised networks on the features of one trunk.

The features are what EfficientNet-Lite0 (the fetched model `photo`) makes of a picture before its last layer. The
pictures are real and labelled: the handwritten digits that scikit-learn ships, and Fashion-MNIST (Zalando, MIT) as
Debian packages it. Each head answers another question about them, some only about a slice of the classes.

Needs numpy and onnxruntime, and takes some minutes, nearly all of it for features. Fashion-MNIST's folder is that of
Debian's package dataset-fashion-mnist: /usr/share/datasets/fashion-mnist, or wherever it was unpacked.

    python3 models/train_heads.py [FASHION]
"""

import gzip
import sys
from pathlib import Path

import numpy as np
import onnxruntime

import heads
import train_tiny

SIDE = 224
# Of each data set; the held-out pictures are never trained on.
DIGITS_TRAINED, FASHION_TRAINED, FASHION_HELD_OUT = 1437, 3000, 1000
BATCH = 16
STEPS = 1500
RATE = 0.05
WEIGHT_DECAY = 2e-3

FASHION = "t-shirt trousers pullover dress coat sandal shirt sneaker bag ankle-boot".split()
TOPS, SHOES = (0, 2, 3, 4, 6), (5, 7, 9)
KINDS = {0: "top", 1: "trousers", 2: "top", 3: "dress", 4: "top", 5: "shoe", 6: "top", 7: "shoe", 8: "bag", 9: "shoe"}
# Name of the head -> (data set, what each class of the set is called; None: not in this head's slice).
QUESTIONS = {
    "digit": ("digits", lambda digit: str(digit)),
    "digit-parity": ("digits", lambda digit: ("even", "odd")[digit % 2]),
    "digit-small": ("digits", lambda digit: str(digit) if digit < 5 else None),
    "digit-loop": ("digits", lambda digit: {0: "loop", 6: "loop", 8: "loop", 9: "loop"}.get(digit, "open")),
    "fashion": ("fashion", lambda kind: FASHION[kind]),
    "fashion-kind": ("fashion", lambda kind: KINDS[kind]),
    "fashion-tops": ("fashion", lambda kind: FASHION[kind] if kind in TOPS else None),
    "fashion-shoes": ("fashion", lambda kind: FASHION[kind] if kind in SHOES else None),
    "garment-or-digit": ("both", None),
}


def fashion(folder):
    """((pictures, classes) to train on, (pictures, classes) held out): the first of the files' own two parts."""

    def read(part, count):
        with gzip.open(folder / f"{part}-images-idx3-ubyte.gz") as file:
            pictures = np.frombuffer(file.read(16 + count * 784)[16:], np.uint8).reshape(-1, 28, 28)
        with gzip.open(folder / f"{part}-labels-idx1-ubyte.gz") as file:
            return pictures, np.frombuffer(file.read(8 + count)[8:], np.uint8).astype(int)

    return read("train", FASHION_TRAINED), read("t10k", FASHION_HELD_OUT)


def features(session, pictures):
    """What the trunk makes of grey pictures in 0..255, enlarged to its size by repeating pixels."""
    side = pictures.shape[1]
    out = []
    for at in range(0, len(pictures), BATCH):
        some = pictures[at : at + BATCH].astype(np.float32)
        large = some.repeat(SIDE // side, 1).repeat(SIDE // side, 2)
        inputs = np.repeat(((large - 127) / 128)[:, None], 3, 1)
        out.append(session.run(None, {"image": np.ascontiguousarray(inputs)})[0])
    return np.concatenate(out)


def train(x, y, classes):
    """Softmax regression on standardised features; (weights [1280, classes], bias) for the features as they are."""
    mean, scale = x.mean(0), x.std(0) + 1e-2
    x = (x - mean) / scale
    weights, bias = np.zeros((x.shape[1], classes)), np.zeros(classes)
    moments = [np.zeros_like(weights), np.zeros_like(weights), np.zeros_like(bias), np.zeros_like(bias)]
    random = np.random.default_rng(5)
    for step in range(1, STEPS + 1):
        some = random.integers(0, len(x), 128)
        slope = train_tiny._softmax(x[some] @ weights + bias)
        slope[np.arange(len(some)), y[some]] -= 1
        slope /= len(some)
        rate = RATE * (1 - step / (STEPS + 1)) * np.sqrt(1 - 0.999**step) / (1 - 0.9**step)
        for value, gradient, k in ((weights, x[some].T @ slope + WEIGHT_DECAY * weights, 0), (bias, slope.sum(0), 2)):
            moments[k] = 0.9 * moments[k] + 0.1 * gradient
            moments[k + 1] = 0.999 * moments[k + 1] + 0.001 * gradient**2
            value -= rate * 0.1 * moments[k] / (np.sqrt(moments[k + 1]) + 1e-8)
    weights = weights / scale[:, None]
    return weights, bias - mean @ weights


def question(name, data):
    """(features, class names by picture) of what a head is trained or tested on."""
    source, called = QUESTIONS[name]
    if source == "both":
        sets = [(data[key][0], word) for key, word in (("digits", "digit"), ("fashion", "garment"))]
        return np.concatenate([x for x, _ in sets]), [word for x, word in sets for _ in x]
    x, y = data[source]
    names = [called(int(kind)) for kind in y]
    kept = [k for k, name in enumerate(names) if name is not None]
    return x[kept], [names[k] for k in kept]


def main():
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "/usr/share/datasets/fashion-mnist")
    session = onnxruntime.InferenceSession(heads.trunk(memoryview(heads.PHOTO.read_bytes())))
    pixels, digit = train_tiny.digits()
    pixels = (pixels.reshape(-1, 8, 8) * 255).astype(np.uint8)
    digits = features(session, pixels)
    (some, kinds), (others, other_kinds) = fashion(folder)
    trained = {"digits": (digits[:DIGITS_TRAINED], digit[:DIGITS_TRAINED]), "fashion": (features(session, some), kinds)}
    held_out = {
        "digits": (digits[DIGITS_TRAINED:], digit[DIGITS_TRAINED:]),
        "fashion": (features(session, others), other_kinds),
    }
    heads.HEADS.mkdir(exist_ok=True)
    for name in QUESTIONS:
        x, names = question(name, trained)
        classes = sorted(set(names))
        weights, bias = train(x, np.array([classes.index(word) for word in names]), len(classes))
        head = np.concatenate([bias[None], weights]).astype(np.float16)
        np.save(heads.HEADS / f"{name}.npy", head)
        (heads.HEADS / f"{name}.txt").write_text("".join(f"{word}\n" for word in classes))
        x, names = question(name, held_out)
        answers = (x @ head[1:].astype(np.float32) + head[0].astype(np.float32)).argmax(1)
        right = np.mean([classes[answer] == word for answer, word in zip(answers, names)])
        print(f"{name}: {right:.3f} of {len(names)} held-out pictures right, {len(classes)} classes")


if __name__ == "__main__":
    main()
