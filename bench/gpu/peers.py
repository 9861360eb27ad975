#!/usr/bin/env python3
"""Times what others take for the same work on the same GPU, where they are installed.

PyTorch (cuBLAS, cuDNN) for the kernels that `rota-bench gpu kernels` timed, ONNX Runtime's CUDA provider for the models that
`rota-bench gpu models` timed. Reads kernels.jsonl and models.jsonl in the folder of results, writes peers.jsonl there, one line per
measurement: {"what", "by", "us", "why"}. Times are medians by CUDA events, of launches that follow each other in a CUDA graph
where the work can be captured: the same as the column "warm" of ours.
"""

import argparse
import json
import pathlib
import statistics
import time


class Writer:
    """peers.jsonl, whole after each line."""

    def __init__(self, file: pathlib.Path):
        self.file = file.open("w")

    def write(self, what: str, by: str, us: float | None = None, why: str | None = None) -> None:
        self.file.write(json.dumps({"what": what, "by": by, "us": us, "why": why}) + "\n")
        self.file.flush()


def read_lines(file: pathlib.Path, kind: str) -> list[dict]:
    """The lines of one kind; none when the part did not run. A last line that was cut off is left out."""
    if not file.exists():
        return []
    whole = file.read_text().rpartition("\n")[0]
    return [line for line in map(json.loads, whole.splitlines()) if line["line"] == kind]


def distinct_cases(kernels: list[dict]) -> dict[str, dict]:
    """By "family what": the peer's description; every kernel and block of one case has the same."""
    return {f"{line['family']} {line['what']}": line["peer"] for line in kernels if line.get("peer")}


# --- kernels, by PyTorch -----------------------------------------------------------------------------------------------


def torch_work(torch, peer: dict):
    """A function that does the work once, of tensors that lie on the GPU."""
    functional = torch.nn.functional
    dtypes = {"f32": torch.float32, "tf32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16,
              "i32": torch.int32, "i64": torch.int64}
    by_size = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    dtype = dtypes.get(peer.get("dtype"), torch.float32)

    def made(*dims, of=None):
        of = of or dtype
        if of.is_floating_point:
            return torch.rand(*dims, device="cuda", dtype=torch.float32).mul(2).sub(1).to(of)
        return torch.randint(0, 100, dims, device="cuda").to(of)

    op = peer["op"]
    if op == "linear":
        x, w, bias = made(peer["rows"], peer["depth"]), made(peer["columns"], peer["depth"]), made(peer["columns"])
        if peer["wide"]:
            w = w.t().contiguous()
            return lambda: torch.addmm(bias, x, w)
        return lambda: functional.linear(x, w, bias)
    if op == "linears":
        pairs = [(made(rows, peer["depth"]), made(columns, peer["depth"])) for rows, columns in peer["heads"]]
        return lambda: [functional.linear(x, w) for x, w in pairs]
    if op in ("conv2d", "conv_transpose2d"):
        images, channels, filters, kernel = (peer[key] for key in ("images", "channels", "filters", "kernel"))
        x, bias = made(images, channels, *peer["input"]), made(filters)
        if peer.get("channels_last"):
            x = x.contiguous(memory_format=torch.channels_last)
        if op == "conv2d":
            w = made(filters, channels // peer["groups"], kernel, kernel)
            settings = {"stride": peer["stride"], "padding": peer["pad"], "groups": peer["groups"]}
            return lambda: functional.conv2d(x, w, bias, **settings).relu_()
        w = made(channels, filters, kernel, kernel)
        return lambda: functional.conv_transpose2d(x, w, bias, stride=peer["stride"]).relu_()
    if op in ("max_pool2d", "avg_pool2d"):
        x = made(1, peer["planes"], peer["side"], peer["side"])
        more = {"count_include_pad": False} if op == "avg_pool2d" else {}
        return lambda: getattr(functional, op)(x, 3, stride=2, padding=1, **more)
    if op == "interpolate":
        x = made(1, peer["planes"], peer["side"], peer["side"])
        return lambda: functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
    if op in ("mean", "sum"):
        x = made(*peer["dims"])
        more = {"dtype": dtype} if op == "sum" else {}
        return lambda: getattr(torch, op)(x, dim=1, **more)
    if op == "softmax":
        x = made(peer["rows"], peer["columns"])
        return lambda: torch.softmax(x, dim=1)
    if op == "layer_norm":
        x, gamma, beta = made(peer["rows"], peer["columns"]), made(peer["columns"]), made(peer["columns"])
        return lambda: functional.layer_norm(x, (peer["columns"],), gamma, beta)
    if op == "attention":
        q, k, v = (made(*peer["dims"]) for _ in range(3))
        return lambda: functional.scaled_dot_product_attention(q, k, v)
    if op == "affine_swish":
        x, residual = made(*peer["dims"]), made(*peer["dims"])
        factor, shift = made(1, peer["dims"][1], 1), made(1, peer["dims"][1], 1)
        # Not fused: what a framework does without a compiler.
        return lambda: functional.silu(x * factor + shift) + residual
    of = by_size[peer["bytes"]]
    if op == "slice":
        x = made(peer["rows"], peer["columns"] + peer["skip"], of=of)
        return lambda: x[:, peer["skip"]:].contiguous()
    if op == "transpose":
        x = made(peer["rows"], peer["columns"], of=of)
        return lambda: x.t().contiguous()
    if op == "embedding":
        table = made(peer["axis"], peer["inner"], of=of)
        indices = torch.randint(0, peer["axis"], (peer["count"],), device="cuda")
        return lambda: torch.index_select(table, 0, indices)
    if op == "pad":
        x = made(peer["planes"], peer["height"], peer["width"], of=of)
        return lambda: functional.pad(x, (1, 1, 1, 1), value=7)
    raise ValueError(f"peers.py does not know {op}")


def torch_time(torch, work, repeats: int = 20, samples: int = 25) -> float:
    """Microseconds of one repetition, the median."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            work()
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            for _ in range(repeats):
                work()
        graph.replay()
        taken = []
        for _ in range(samples):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record(stream)
            graph.replay()
            end.record(stream)
            end.synchronize()
            taken.append(begin.elapsed_time(end) * 1e3 / repeats)
    return statistics.median(taken)


def time_kernels(cases: dict[str, dict], writer: Writer, until: float) -> None:
    try:
        import torch
    except ImportError as error:
        writer.write("kernels", "PyTorch", why=str(error))
        return
    by = f"PyTorch {torch.__version__}"
    if not torch.cuda.is_available():
        writer.write("kernels", by, why="it finds no CUDA")
        return
    for what, peer in cases.items():
        if time.monotonic() > until:
            writer.write(what, by, why="the time was up")
            continue
        tf32 = peer.get("dtype") == "tf32"
        torch.backends.cuda.matmul.allow_tf32 = tf32
        torch.backends.cudnn.allow_tf32 = tf32
        torch.backends.cudnn.benchmark = True
        try:
            with torch.inference_mode():
                writer.write(what, by, us=torch_time(torch, torch_work(torch, peer)))
        except (RuntimeError, ValueError, TypeError) as error:
            writer.write(what, by, why=str(error).splitlines()[0])


# --- models, by ONNX Runtime -------------------------------------------------------------------------------------------


def batch_inputs(numpy, folder: pathlib.Path, reference: dict, batch: int) -> dict:
    """The same batch as ours: the reference's items again and again."""
    inputs = {}
    for index, tensor in enumerate(reference["inputs"]):
        items = [numpy.load(folder / f"in_{item}_{index}.npy") for item in range(reference["items"])]
        axis = tensor["batch_axis"]
        turns = [items[at % len(items)] for at in range(batch)]
        inputs[tensor["name"]] = items[0] if axis is None else numpy.concatenate(turns, axis=axis)
    return inputs


def time_model(runtime, numpy, session, inputs: dict, samples: int = 50) -> float:
    """Microseconds of one run with inputs and outputs on the GPU, the median, by the host's clock."""
    binding = session.io_binding()
    for name, value in inputs.items():
        binding.bind_ortvalue_input(name, runtime.OrtValue.ortvalue_from_numpy(numpy.ascontiguousarray(value), "cuda", 0))
    for output in session.get_outputs():
        binding.bind_output(output.name, "cuda")
    taken = []
    for number in range(samples + 5):
        begin = time.perf_counter()
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        if number >= 5:  # The first runs choose algorithms and allocate.
            taken.append((time.perf_counter() - begin) * 1e6)
    return statistics.median(taken)


def time_models(rows: list[dict], models: pathlib.Path, references: pathlib.Path, writer: Writer, until: float) -> None:
    try:
        import numpy
        import onnxruntime as runtime
    except ImportError as error:
        writer.write("models", "ONNX Runtime", why=str(error))
        return
    by = f"ONNX Runtime {runtime.__version__}, CUDA"
    if "CUDAExecutionProvider" not in runtime.get_available_providers():
        writer.write("models", by, why="it has no CUDA provider")
        return
    wanted = sorted({(row["model"], row["batch"]) for row in rows})
    sessions = {}
    for model, batch in wanted:
        what = f"{model} {batch}"
        if time.monotonic() > until:
            writer.write(what, by, why="the time was up")
            continue
        try:
            reference = json.loads((references / model / "reference.json").read_text())
            if model not in sessions:
                file = models / model / str(reference["version"]) / "model.onnx"
                # As exact as ours are: no TF32.
                cuda = ("CUDAExecutionProvider", {"use_tf32": "0"})
                sessions = {model: runtime.InferenceSession(str(file), providers=[cuda, "CPUExecutionProvider"])}
            session = sessions[model]
            if "CUDAExecutionProvider" not in session.get_providers():
                writer.write(what, by, why="its CUDA provider can't be loaded")
                continue
            inputs = batch_inputs(numpy, references / model, reference, batch)
            writer.write(what, by, us=time_model(runtime, numpy, session, inputs))
        except Exception as error:  # Whatever a provider raises: the next model may run.
            writer.write(what, by, why=str(error).splitlines()[0] if str(error) else repr(error))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=pathlib.Path, required=True, help="folder with kernels.jsonl and models.jsonl")
    parser.add_argument("--models", type=pathlib.Path, required=True)
    parser.add_argument("--references", type=pathlib.Path, required=True)
    parser.add_argument("--seconds", type=float, default=75, help="when to stop")
    arguments = parser.parse_args()
    writer = Writer(arguments.results / "peers.jsonl")
    machines = read_lines(arguments.results / "kernels.jsonl", "machine")
    if machines and machines[0]["stand_in"]:
        writer.write("peers", "all", why="with the stand-in driver there is nothing to compare with")
        return
    begin = time.monotonic()
    kernels = read_lines(arguments.results / "kernels.jsonl", "kernel")
    time_kernels(distinct_cases(kernels), writer, begin + arguments.seconds * 0.6)
    rows = read_lines(arguments.results / "models.jsonl", "model")
    time_models(rows, arguments.models, arguments.references, writer, begin + arguments.seconds)


if __name__ == "__main__":
    main()
