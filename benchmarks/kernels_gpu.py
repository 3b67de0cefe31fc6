"""The shared kernels beside flash-linear-attention, mamba-ssm and torch on one NVIDIA GPU, in one process.

    python benchmarks/kernels_gpu.py [--only NAME] [--list] [--forward] [--json FILE]
    python benchmarks/kernels_gpu.py --interpret        without a GPU: tiny sizes in Triton's interpreter

benchmarks/README.md says what each column means and how to install the peers.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import tempfile
import time
from collections.abc import Callable
from typing import Any

DEVICES = {
    "H200": (4.8, 989.0, 3.7),
    "H100 PCIe": (2.0, 756.0, 3.2),
    "H100": (3.35, 989.0, 3.7),
    "A100-SXM4-80GB": (2.04, 312.0, 2.4),
}
"""Part of the device's name -> TB/s of memory, TF/s of bfloat16 tensor cores (dense), Texp/s of the special
function units: from NVIDIA's data sheets, the last as 16 for each multiprocessor and clock."""
PASSES = {False: "forward", True: "fwd+bwd"}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--interpret", action="store_true", help="tiny sizes on a CPU, in the interpreter")
    parser.add_argument("--list", action="store_true", help="print the shapes and their floors; run nothing")
    parser.add_argument("--only", help="cases whose name contains this")
    parser.add_argument("--forward", action="store_true", help="no backward passes")
    parser.add_argument("--json", help="also write all figures to this file")
    options = parser.parse_args()
    if options.interpret:
        os.environ["TRITON_INTERPRET"] = "1"
    # Nothing is kept from earlier runs, so that the first call's seconds are those of a new machine.
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TRITON_CACHE_DIR"] = folder
        found = run(options)
    if options.json:
        with open(options.json, "w") as file:
            json.dump(found, file, indent=1)


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Run what the options ask for, print it, and return the rows."""
    import torch
    from gpu_cases import cases

    chosen = [each for each in cases(options.interpret) if (options.only or "").lower() in each.name.lower()]
    if options.list:
        return [listed(each) for each in chosen]
    if not options.interpret and not torch.cuda.is_available():
        raise SystemExit(
            "there is no CUDA device; --interpret runs tiny sizes without one, --list the shapes"
        )
    device = "cpu" if options.interpret else "cuda"
    name = "Triton's interpreter" if options.interpret else torch.cuda.get_device_name()
    limit = next((DEVICES[part] for part in DEVICES if part in name), None)
    import triton

    print(f"{name}, torch {torch.__version__}, triton {triton.__version__}")
    print("limits: " + ("unknown" if limit is None else "{} TB/s, {} TF/s, {} Texp/s".format(*limit)))
    print(
        f"{'kernel and shape':44}{'method':22}{'pass':>10}{'ms':>9}{'eager':>9}{'TB/s':>7}{'TF/s':>7}"
        f"{'% roof':>7}{'error':>9}{'MB':>8}{'first s':>8}  goal"
    )
    rows = []
    for case in chosen:
        inputs = case.make(device, torch.float32 if device == "cpu" else case.dtype)
        forward = compared(case, inputs, device, False, limit)
        rows += forward
        if case.backward and not options.forward:
            spent = {row["method"]: row.get("eager", math.nan) for row in forward}
            rows += compared(case, inputs, device, True, limit, spent)
    return rows


def listed(case: Any) -> dict[str, Any]:
    """The shape, its compulsory bytes and flops, and what an H200 needs for them at least."""
    inputs, output = shapes(case)
    bytes_ = inputs + output
    floor, by = roof(bytes_, case.flops, case.exps, DEVICES["H200"])
    goal = "" if math.isnan(case.goal) else f"goal {case.goal:g} ms ({case.goal_pass})"
    print(
        f"{case.name:22}{case.shape:24}{bytes_ / 1e6:10.1f} MB{case.flops / 1e9:10.1f} GF"
        f"{floor:8.3f} ms on an H200 by {by:6} {goal}"
    )
    return {"name": case.name, "shape": case.shape, "bytes": bytes_, "flops": case.flops, "floor_ms": floor}


def shapes(case: Any) -> tuple[int, int]:
    """Bytes of inputs and output, found without memory (torch's fake tensors)."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True):
        inputs = case.make("cpu", case.dtype)
        return sum(x.nbytes for x in inputs), case.ours(*inputs).nbytes


def roof(bytes_: float, flops: float, exps: float, limit: tuple[float, float, float]) -> tuple[float, str]:
    """The least milliseconds, and which limit it is."""
    needs = zip((bytes_, flops, exps), limit, ("bytes", "flops", "exps"))
    return max((1e3 * amount / (1e12 * speed), by) for amount, speed, by in needs)


# Measuring ----------------------------------------------------------------------------------------------


def compared(
    case: Any, inputs: Any, device: str, backward: bool, limit: Any, forward: dict[str, float] | None = None
) -> list[dict[str, Any]]:
    """Ours and every peer on the same inputs, one after another; ``forward``: their eager forward ms."""
    import torch

    rows = []
    for label, load in {"worldsim": lambda: ours(case, device), **case.peers}.items():
        row: dict[str, Any] = {
            "case": case.name,
            "shape": case.shape,
            "method": label,
            "pass": PASSES[backward],
        }
        try:
            row |= measured(load(), inputs, backward, case, device, limit)
            if forward:
                row["backward"] = row["ms"] - forward[label]
            if "softmax" in label:
                row["error"] = math.nan
        except ImportError as problem:
            row["note"] = f"not installed: {problem}"
        except Exception as problem:
            row["note"] = f"{type(problem).__name__}: {' '.join(str(problem).split())[:90]}"
        show(row, case, backward)
        rows.append(row)
        if device == "cuda":
            torch.cuda.empty_cache()
    return rows


def ours(case: Any, device: str) -> Callable[..., Any]:
    """Through Triton, also where the interpreter would not be chosen."""
    import worldsim_kernels

    def run(*inputs: Any) -> Any:
        with worldsim_kernels.use("triton"):
            return case.ours(*inputs)

    return case.ours if device == "cuda" else run


def measured(call: Any, inputs: Any, backward: bool, case: Any, device: str, limit: Any) -> dict[str, Any]:
    import torch

    step = work(call, inputs, backward)
    begun = time.perf_counter()
    output = step()[0]
    synchronise(device)
    row: dict[str, Any] = {"first": time.perf_counter() - begun, "error": wrong(case, inputs, output)}
    bytes_ = sum(x.nbytes for x in inputs) + output.nbytes
    gradients = sum(x.nbytes for x in inputs if x.is_floating_point()) if backward else 0
    bytes_ += bytes_ + gradients if backward else 0
    flops, exps = (each * (3 if backward else 1) for each in (case.flops, case.exps))
    del output
    if device == "cpu":
        row["ms"] = 1e3 * row["first"]
    else:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        synchronise(device)
        row["megabytes"] = (torch.cuda.max_memory_allocated() - before) / 1e6
        from triton.testing import do_bench

        row["eager"] = do_bench(step, return_mode="median")
        replay = None if backward else graph(step)
        row["ms"] = row["eager"] if replay is None else do_bench(replay, return_mode="median")
        row["graph"] = replay is not None
    row["tbytes"] = bytes_ / row["ms"] / 1e9
    row["tflops"] = flops / row["ms"] / 1e9
    if limit is not None:
        row["of_roof"] = 100 * roof(bytes_, flops, exps, limit)[0] / row["ms"]
    return row


def work(call: Any, inputs: Any, backward: bool) -> Callable[[], tuple[Any, ...]]:
    """One forward, or one forward and backward, pass."""
    import torch

    if not backward:

        def forward() -> tuple[Any, ...]:
            with torch.no_grad():
                return (call(*inputs),)

        return forward
    leaves = [x.detach().requires_grad_() for x in inputs]

    def both() -> tuple[Any, ...]:
        output = call(*leaves)
        return (output, *torch.autograd.grad(output, leaves, torch.ones_like(output), allow_unused=True))

    return both


def graph(step: Callable[[], Any]) -> Callable[[], None] | None:
    """The step as a CUDA graph; None where it cannot be captured."""
    import torch

    try:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(stream)
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured):
            step()
    except Exception:
        synchronise("cuda")
        return None
    replay: Callable[[], None] = captured.replay
    return replay


def wrong(case: Any, inputs: Any, output: Any) -> float:
    """Relative error of part of the output, against our reference in float64 on the part it comes from."""
    import torch

    import worldsim_kernels

    part = [x.double() for x in case.few(inputs)]
    if not part[0].numel():
        return math.nan
    with torch.no_grad(), worldsim_kernels.use("reference"):
        true = case.ours(*part)
    return float((case.part(output.detach()).double() - true).norm() / true.norm())


def synchronise(device: str) -> None:
    import torch

    if device == "cuda":
        torch.cuda.synchronize()


def show(row: dict[str, Any], case: Any, backward: bool) -> None:
    head = f"{case.name + ' ' + case.shape:44}{row['method']:22}{row['pass']:>10}"
    if "note" in row:
        print(f"{head}  {row['note']}")
        return

    def cell(key: str, width: int, digits: int) -> str:
        value = row.get(key, math.nan)
        return f"{'-' if math.isnan(value) else f'{value:.{digits}f}':>{width}}"

    error = "-" if math.isnan(row["error"]) else f"{row['error']:.1e}"
    values = cell("ms", 9, 3) + cell("eager", 9, 3) + cell("tbytes", 7, 2) + cell("tflops", 7, 0)
    values += cell("of_roof", 7, 0) + f"{error:>9}" + cell("megabytes", 8, 0) + cell("first", 8, 1)
    print(head + values + verdict(row, case, backward))


def verdict(row: dict[str, Any], case: Any, backward: bool) -> str:
    """The goal, where this is our row of its pass on a GPU; a backward pass alone is the difference."""
    wanted = case.goal_pass == "backward"
    if row["method"] != "worldsim" or math.isnan(case.goal) or "eager" not in row or backward != wanted:
        return ""
    spent = row["backward" if wanted else "ms"]
    return f"  <= {case.goal:g} ms on an H200: {'met' if spent <= case.goal else 'NOT MET'}"


if __name__ == "__main__":
    main()
