"""Answers every item of a manifest with Python's onnxruntime and compares with what the manifest expects.

It is how `expect` in a manifest is checked, and the shortest complete reader of one. Needs numpy and onnxruntime.

    python3 models/check.py models/fetched/manifest.json models/tiny/manifest.json

Exit status: 0 all as expected; 1 not.
"""

import json
import sys
from pathlib import Path

import magika_tokens

SPEECH_THRESHOLD = 0.5


def read_labels(path):
    """One label a line; a line may be empty or a space, so only its end is cut off."""
    return path.read_text(encoding="utf-8").split("\n")[:-1]


def requests(model, item, base, root):
    """The tensors of each request of an item, in order."""
    import numpy as np

    if "file" in item:
        (name,) = model["encode"]
        tokens = magika_tokens.tokens((root / item["file"]).read_bytes())
        return [{name: np.array([tokens], np.int32)}]
    whole = {name: np.load(base / path) for name, path in item["inputs"].items()}
    if "rows" not in item:
        return [whole]
    first, count = item["rows"]
    by_row = model["row_inputs"]
    return [{**whole, **{name: whole[name][k : k + 1] for name in by_row}} for k in range(first, first + count)]


def label(outputs, labels):
    """The likeliest class of the last answer."""
    return labels[int(outputs[-1][0].argmax())]


def text(outputs, labels):
    """The likeliest character at each place, repetitions and blanks (class 0) left out."""
    best = outputs[-1][0].argmax(1)
    kept = (k for i, k in enumerate(best) if k != 0 and (i == 0 or best[i - 1] != k))
    return "".join(labels[k] for k in kept)


def spans(outputs):
    """The first and last of each run of answers that say that somebody speaks."""
    found, before = [], False
    for k, probability in enumerate(float(output[0, 0]) for output in outputs):
        speaks = probability >= SPEECH_THRESHOLD
        if speaks and not before:
            found.append([k, k])
        elif speaks:
            found[-1][1] = k
        before = speaks
    return found


def near(found, wanted, tolerance):
    """Whether two lists of spans agree but for `tolerance` answers at each end."""
    if len(found) != len(wanted):
        return False
    return all(abs(a - b) <= tolerance for one, other in zip(found, wanted) for a, b in zip(one, other))


def check(model, base, root, session):
    """Prints a line per unexpected answer and one for the model; returns whether all were as expected."""
    labels = read_labels(base / model["labels"]) if "labels" in model else []
    expected = right = known = unchecked = 0
    for item in model["items"]:
        outputs, state = [], {}
        for tensors in requests(model, item, base, root):
            names = [model["output"], *model.get("feedback", {}).values()]
            answers = dict(zip(names, session.run(names, {**tensors, **state})))
            state = {name: answers[output] for name, output in model.get("feedback", {}).items()}
            outputs.append(answers[model["output"]])
        if model["task"] == "speech":
            answer = spans(outputs)
            as_expected = near(answer, item["spans"], item["spans_tolerance"])
        elif "expect" in item:
            answer = text(outputs, labels) if model["task"] == "text" else label(outputs, labels)
            as_expected = answer in item["expect"]
        else:
            unchecked += 1
            continue
        expected += as_expected
        known += "truth" in item
        right += "truth" in item and answer == item["truth"]
        if not as_expected:
            print(f"{model['name']}: {item['name']}: {answer!r}, expected {item.get('expect', item.get('spans'))}")
    count = len(model["items"]) - unchecked
    print(f"{model['name']}: {expected} of {count} as expected, {right} of {known} true, {unchecked} not checked")
    return expected == count


def main():
    import onnxruntime

    root = Path(__file__).resolve().parent.parent
    well = True
    for path in map(Path, sys.argv[1:]):
        manifest = json.loads(path.read_bytes())
        for model in manifest["models"]:
            file = path.parent / manifest["repository"] / model["name"] / "1/model.onnx"
            well &= check(model, path.parent, root, onnxruntime.InferenceSession(str(file)))
    return 0 if well and len(sys.argv) > 1 else 1


if __name__ == "__main__":
    sys.exit(main())
