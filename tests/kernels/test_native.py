"""C kernels are compiled once, kept safely, and refused with a reason."""

import ctypes
import os
import subprocess
import sys
import tempfile

import pytest
import torch

from worldsim_kernels import native

needs_compiler = pytest.mark.skipif(native.compiler() is None, reason="NOT RUN: no C compiler")
PROGRAM = '#include "vector.h"\nint answer(void) { return 42; }\n'
EXP = """#include "vector.h"
void all_exp(const float *x, float *y, int64_t n) {
    for (int64_t i = 0; i < n; i += LANES_f32) *(f32vu *)(y + i) = exp_f32(*(const f32vu *)(x + i));
}
typedef struct { int64_t *out; } job;
static void square(void *context, int64_t item) { ((job *)context)->out[item] = item * item; }
void squares(int64_t *out, int64_t n, int threads) { job j = {out}; run_team(n, threads, square, &j); }
"""


@pytest.fixture
def place(monkeypatch, tmp_path):
    """A folder of sources and an empty cache; nothing is remembered from other tests, or for them."""
    sources = tmp_path / "csrc"
    sources.mkdir()
    (sources / "vector.h").write_text((native.CSRC / "vector.h").read_text())
    monkeypatch.setattr(native, "CSRC", sources)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    cached = [value for value in vars(native).values() if hasattr(value, "cache_clear")]
    for each in cached:
        each.cache_clear()
    yield sources
    for each in cached:
        each.cache_clear()


def kept(place):
    return sorted((place.parent / "cache" / "worldsim" / "native").iterdir())


@needs_compiler
def test_a_source_is_compiled_once_and_again_when_it_changes(place):
    (place / "one.c").write_text(PROGRAM)
    assert native.library("one").answer() == 42
    (file,) = kept(place)
    stamp = file.stat().st_mtime_ns
    for each in (native.library, native.why_not, native._loaded, native._built):
        each.cache_clear()
    assert native.library("one").answer() == 42
    assert kept(place)[0].stat().st_mtime_ns == stamp
    for each in (native.library, native.why_not, native._loaded, native._built):
        each.cache_clear()
    (place / "one.c").write_text(PROGRAM.replace("42", "43"))
    assert native.library("one").answer() == 43
    assert len(kept(place)) == 2


@needs_compiler
def test_what_does_not_compile_is_a_reason(place):
    (place / "bad.c").write_text("int answer(void) { return missing; }\n")
    reason = native.why_not("bad")
    assert "bad.c" in reason
    assert "missing" in reason
    with pytest.raises(native.Unavailable, match="could not compile"):
        native.library("bad")
    assert kept(place) == []


def test_without_a_compiler_there_is_a_reason(place, monkeypatch):
    (place / "one.c").write_text(PROGRAM)
    monkeypatch.setenv("PATH", str(place))
    monkeypatch.delenv("CC", raising=False)
    assert native.why_not("one") == "no C compiler (cc, gcc or clang) is on the PATH"


@needs_compiler
def test_a_cache_that_cannot_be_written_is_replaced_by_a_temporary_one(place, monkeypatch):
    (place / "file").write_text("no folder can be made in here")
    monkeypatch.setenv("XDG_CACHE_HOME", str(place / "file"))
    (place / "one.c").write_text(PROGRAM)
    assert native.library("one").answer() == 42
    folder = native.cache_folder()
    assert folder == place.parent / "tmp" / f"worldsim-native-{os.getuid()}"
    assert folder.stat().st_mode & 0o777 == 0o700
    native._own_folder.cache_clear()
    folder.chmod(0o777)  # anybody could put a library there
    assert native._own_folder() != folder


@needs_compiler
def test_a_kept_library_that_cannot_be_loaded_is_compiled_again(place):
    (place / "one.c").write_text(PROGRAM)
    folder = native.cache_folder()
    (folder / f"one-{native._digest('one')}.so").write_text("")
    assert native.library("one").answer() == 42


def test_what_the_compiler_made_but_nothing_can_load_is_a_reason(place, monkeypatch):
    (place / "one.c").write_text(PROGRAM)
    script = 'while [ $# -gt 0 ]; do [ "$1" = -o ] && echo no > "$2"; shift; done; exit 0\n'
    (place / "false").write_text(f"#!/bin/sh\n{script}")
    (place / "false").chmod(0o755)
    monkeypatch.setenv("CC", str(place / "false"))
    assert "cannot be loaded" in native.why_not("one")


@needs_compiler
def test_the_compiler_may_have_arguments(place, monkeypatch):
    (place / "one.c").write_text(PROGRAM.replace("42", "ANSWER"))
    monkeypatch.setenv("CC", f"{native.compiler()} -DANSWER=43")
    native.compiler.cache_clear()
    assert native.library("one").answer() == 43


@needs_compiler
def test_a_user_without_a_home_has_a_temporary_cache(place, monkeypatch):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(native.Path, "home", homeless)
    (place / "one.c").write_text(PROGRAM)
    assert native.library("one").answer() == 42


@needs_compiler
def test_two_processes_may_compile_at_once(place):
    (place / "one.c").write_text(PROGRAM)
    code = (
        "import sys; from pathlib import Path; from worldsim_kernels import native;"
        f"native.CSRC = Path({str(place)!r}); assert native.library('one').answer() == 42"
    )
    running = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
    assert [each.wait(120) for each in running] == [0, 0]
    assert len(kept(place)) == 1


@needs_compiler
def test_exp_is_within_two_units_in_the_last_place(place):
    (place / "both.c").write_text(EXP)
    run = native.library("both").all_exp
    x = torch.cat([torch.linspace(-104, 88, 2**16), torch.tensor([-torch.inf, torch.nan, 0.0, -0.0] * 4)])
    y = torch.empty_like(x)
    run(*(ctypes.c_void_p(each.data_ptr()) for each in (x, y)), ctypes.c_int64(len(x)))
    exact = x.double().exp()
    normal = exact > torch.finfo(torch.float32).tiny
    assert ((y - exact)[normal] / exact[normal]).abs().max() < 2 * 2**-23
    assert (y - exact)[: 2**16][~normal[: 2**16]].abs().max() < 3e-45
    assert y[-4:].isnan().tolist() == [False, True, False, False]
    assert y[-4] == 0
    assert y[-2:].tolist() == [1, 1]


@needs_compiler
@pytest.mark.parametrize("threads", [1, 2, 5, 200])
def test_a_team_does_every_item_once(place, threads):
    (place / "both.c").write_text(EXP)
    out = torch.zeros(1000, dtype=torch.int64)
    native.library("both").squares(ctypes.c_void_p(out.data_ptr()), ctypes.c_int64(1000), threads)
    assert torch.equal(out, torch.arange(1000) ** 2)


@needs_compiler
def test_loading_leaves_small_numbers_alone(place):
    """A library linked with -ffast-math would switch flush-to-zero on for the whole process."""
    (place / "one.c").write_text(PROGRAM)
    native.library("one")
    assert float(torch.tensor(1e-40) * 1) > 0


def test_threads_are_never_more_than_torch_has():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert [native.threads(work) for work in (0, 1e6, 1e7, 1e12)] == [1, 1, 2, 2]
    finally:
        torch.set_num_threads(before)
