"""The choice of a backend: the first that does not refuse, or the one asked for, or an error."""

import subprocess
import sys

import pytest
import torch

from worldsim_kernels import backends
from worldsim_kernels.backends import KERNELS, ORDER, Backends, backends_of, explain, requested, use

ANY = Backends("any", refuses={"triton": lambda **_: None})
PICKY = Backends("picky", refuses={"torch": lambda **_: "torch is out today"})


def test_torch_runs_where_there_is_no_faster_form():
    assert ANY.choose("", x=torch.zeros(2)) == "torch"
    assert PICKY.choose("") == "reference"


def test_what_is_asked_for_runs_or_says_why_not():
    assert ANY.choose("reference") == "reference"
    with pytest.raises(ValueError, match="picky: backend 'torch' cannot run this call: torch is out today"):
        PICKY.choose("torch")
    with pytest.raises(ValueError, match="any has no native form"):
        ANY.choose("native")
    with pytest.raises(ValueError, match="there are native, triton, torch, reference"):
        ANY.choose("cuda")


def test_triton_is_refused_on_a_cpu_unless_interpreted(monkeypatch):
    monkeypatch.setattr(backends, "missing_triton", lambda: None)
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(ValueError, match="it runs on a GPU, the tensors are on cpu"):
        ANY.choose("triton", x=torch.zeros(2))
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert ANY.choose("triton", x=torch.zeros(2)) == "triton"
    assert ANY.choose("", x=torch.zeros(2)) == "torch"


def test_use_asks_for_a_backend_inside_its_block_alone():
    with use("torch"):
        assert requested(None) == "torch"
        with use("reference"):
            assert requested(None) == "reference"
            assert requested("native") == "native"
        assert requested(None) == "torch"
    assert requested(None) == ""
    with pytest.raises(ValueError, match="there is no backend 'fast'"), use("fast"):
        pass


@pytest.mark.parametrize("kernel", KERNELS)
def test_every_kernel_explains_its_choice(kernel):
    found = explain(kernel)
    assert backends_of(kernel).name == kernel
    assert list(found.reasons) == list(ORDER)
    assert found.reasons[found.chosen] is None
    text = str(found)
    assert text.startswith(f"{kernel}: {found.chosen}")
    assert all(f"not {name}: " in text for name in ORDER if name != found.chosen)


def test_an_unknown_kernel_is_refused():
    with pytest.raises(ValueError, match="there is no kernel 'state_scam'; there are state_scan"):
        explain("state_scam")


def test_kernels_are_light_to_import_and_leave_triton_alone():
    code = (
        "import sys, torch\nbefore = set(sys.modules)\n"
        "from worldsim_kernels import state_scan, attend, selective_scan, sinkhorn, route, rms_norm\n"
        "state_scan(*(torch.zeros(1, 3, 1, 4) for _ in range(3)))\n"
        "new = {name.split('.')[0] for name in set(sys.modules) - before}\n"
        "assert not new & {'triton', 'scipy', 'numpy', 'pydantic', 'worldsim', 'ot'}, new\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
