"""Writes ONNX's own per-operator test cases as files, for device/tests/operators.rs.

    python3 models/operator_cases.py [FOLDER]     default: models/operators/cases

The cases are the onnx package's (onnx.backend.test): small models with inputs and expected outputs. The package is installed by pip,
pinned by hash (requirements-operators.txt), into a folder beside the cases. Each case becomes a folder with model.onnx, input_N.npy and
output_N.npy; a case with values that .npy can't hold (sequences, strings, narrow floats) has a file `skip` that says so instead.
Exit status 3: pip can't be had, or finds no way to the packages.
"""

import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
EXIT_NO_PIP = 3
PIP_SECONDS_MAX = 900


def install(folder):
    """The pinned packages in `folder`, which has a mark once they are all there."""
    requirements = HERE / "requirements-operators.txt"
    mark = folder / ".whole"
    if mark.exists() and mark.read_text() == requirements.read_text():
        return True
    shutil.rmtree(folder, ignore_errors=True)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--require-hashes", "--no-deps"]
    done = subprocess.run([*command, "--target", folder, "-r", requirements], timeout=PIP_SECONDS_MAX)
    if done.returncode == 0:
        mark.write_text(requirements.read_text())
    return done.returncode == 0


def write(case, folder):
    import numpy as np

    folder.mkdir(parents=True)
    model, (inputs, outputs) = case.model, case.data_sets[0]
    arrays = [("input", at, value) for at, value in enumerate(inputs)]
    arrays += [("output", at, value) for at, value in enumerate(outputs)]
    for role, at, value in arrays:
        kind = type(value).__name__
        if not isinstance(value, (np.ndarray, np.generic)):
            (folder / "skip").write_text(f"{role} {at} is a {kind}, not a tensor")
            return
        value = np.asarray(value)
        if value.dtype.kind not in "biuf" or value.dtype.name.startswith(("bfloat", "float8", "float4", "int4", "uint4", "int2", "uint2")):
            (folder / "skip").write_text(f"{role} {at} has elements of type {value.dtype}")
            return
        np.save(folder / f"{role}_{at}.npy", np.ascontiguousarray(value).reshape(value.shape))
    (folder / "model.onnx").write_bytes(model.SerializeToString())


def main():
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "operators/cases"
    whole = folder / ".whole"
    pins = (HERE / "requirements-operators.txt").read_text() + Path(__file__).read_text()
    if whole.exists() and whole.read_text() == pins:
        return 0
    packages = folder.parent / "packages"
    try:
        if not install(packages):
            return EXIT_NO_PIP
    except (OSError, subprocess.TimeoutExpired) as error:
        print(f"pip can't be had: {error}", file=sys.stderr)
        return EXIT_NO_PIP
    sys.path.insert(0, str(packages))
    import numpy as np
    from onnx.backend.test.case.node import collect_testcases

    shutil.rmtree(folder, ignore_errors=True)
    with np.errstate(all="ignore"):
        cases = collect_testcases(None)
    for case in cases:
        write(case, folder / case.name)
    whole.write_text(pins)
    print(f"{len(cases)} cases of the onnx package in {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
