"""What peers.py makes of the results that it reads; no GPU, no PyTorch."""

import json
import pathlib
import re
import tempfile
import unittest

import peers


def line(kind: str, **fields) -> str:
    return json.dumps({"line": kind, **fields}) + "\n"


class Peers(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.file = pathlib.Path(self.folder.name) / "kernels.jsonl"

    def test_a_line_that_was_cut_off_is_left_out(self):
        self.file.write_text(line("kernel", family="gemm", what="a") + line("end", part="kernels") + '{"line": "ker')
        self.assertEqual([row["what"] for row in peers.read_lines(self.file, "kernel")], ["a"])
        self.assertEqual(peers.read_lines(self.file.with_name("models.jsonl"), "model"), [])

    def test_a_case_of_many_kernels_is_timed_once(self):
        rows = [{"family": "gemm", "what": "a", "peer": {"op": "linear"}}] * 3 + [{"family": "move", "what": "b", "peer": None}]
        self.assertEqual(peers.distinct_cases(rows), {"gemm a": {"op": "linear"}})

    def test_every_operation_that_the_cases_name_is_known(self):
        folder = pathlib.Path(__file__).parents[1] / "src" / "gpu" / "cases"
        cases = "".join(file.read_text() for file in folder.glob("*.rs"))
        named = set(re.findall(r'"op": "(\w+)"', cases))
        self.assertGreater(len(named), 8)
        known = pathlib.Path(peers.__file__).read_text()
        self.assertEqual({op for op in named if f'"{op}"' not in known}, set())


if __name__ == "__main__":
    unittest.main()
