"""C kernels: compiled at first use by the machine's own compiler, kept, and bound by ctypes.

Each ``csrc/NAME.c`` becomes one shared library. It is compiled once for this processor and kept under
``$XDG_CACHE_HOME/worldsim/native`` (``~/.cache`` when unset), named by a hash of the sources, the flags, the
compiler and the processor, so that a home shared by unlike machines is safe; two processes that compile at
once write the same bits, and the last to finish replaces the other's file whole. One that cannot be loaded,
since a disk was full or its folder may hold no programs, is compiled again in a folder of this process.
Where no compiler is found, or where it fails, ``library`` raises Unavailable with the reason and the torch
path runs. A source that was made from what a user wrote is compiled and kept the same way (``generated``).

``-ffast-math`` is never used: linking with it switches flush-to-zero on for the whole process.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

CSRC = Path(__file__).parent / "csrc"
COMMON = ("-O3", "-std=gnu11", "-fPIC", "-shared", "-pthread", "-fno-math-errno", "-fno-trapping-math")
TARGETS = (("-march=native", "-mprefer-vector-width=512"), ("-march=native",), ("-mcpu=native",), ())
"""For this processor, in the spelling of one compiler after another."""


class Unavailable(RuntimeError):
    """There is no native library here; the message says why."""


@cache
def library(name: str) -> ctypes.CDLL:
    """The library of ``csrc/NAME.c``, compiled if it is not kept yet.

    Raises Unavailable without a compiler, or with its first complaints when it fails.
    """
    reason = why_not(name)
    if reason is not None:
        raise Unavailable(reason)
    return _loaded(name)


@cache
def generated(name: str, source: str, flags: tuple[str, ...] = ()) -> ctypes.CDLL:
    """The library of C that was made while running, compiled with these further flags if it is not kept yet.

    Raises Unavailable without a compiler, or with its first complaints when it fails.
    """
    reason = _no_compiler()
    if reason is not None:
        raise Unavailable(reason)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}.c"
        path.write_text(source)
        return _loaded_from(path, _digest_of(path, flags), flags)


@cache
def why_not(name: str) -> str | None:
    """Why ``csrc/NAME.c`` cannot run here; None when it can (it is then compiled)."""
    reason = _no_compiler()
    if reason is not None:
        return reason
    try:
        _loaded(name)
    except (Unavailable, OSError) as problem:
        return str(problem)
    return None


def _no_compiler() -> str | None:
    if os.name != "posix":
        return f"native kernels need a POSIX system, this is {platform.system()}"
    return "no C compiler (cc, gcc or clang) is on the PATH" if compiler() is None else None


@cache
def compiler() -> str | None:
    """The path of the compiler: ``$CC``, or the first of cc, gcc and clang; None when there is none.

    ``$CC`` may have arguments, as "ccache gcc", which then stand behind the path.
    """
    for wanted in (os.environ.get("CC", ""), "cc", "gcc", "clang"):
        first, *others = shlex.split(wanted) or [""]
        found = shutil.which(first)
        if found:
            return shlex.join([found, *others])
    return None


def threads(work: float) -> int:
    """How many threads ``work`` (floating-point operations) is worth, at most torch's own number.

    Starting one costs some 20 microseconds, in which a core does about two million operations.
    """
    return max(1, min(torch.get_num_threads(), int(work / 4e6)))


def pointer(tensor: Tensor | None) -> int | None:
    """The address for C; None, which is NULL, for an absent tensor."""
    return None if tensor is None else tensor.data_ptr()


def strides(tensor: Tensor | None, axes: int) -> ctypes.Array[ctypes.c_int64]:
    """The tensor's strides in elements, for C; zeros for an absent one."""
    found = (0,) * axes if tensor is None else tensor.stride()
    return (ctypes.c_int64 * axes)(*found)


@cache
def _loaded(name: str) -> ctypes.CDLL:
    return _loaded_from(CSRC / f"{name}.c", _digest(name))


def _loaded_from(source: Path, digest: str, flags: tuple[str, ...] = ()) -> ctypes.CDLL:
    """What is kept; if that cannot be loaded, what this user has among the temporary ones, or makes there."""
    kept = _built(source, digest, flags)
    try:
        return ctypes.CDLL(str(kept))
    except OSError:
        own = _own_folder() / kept.name
    try:
        return ctypes.CDLL(str(own))
    except OSError:
        _compile(source, own, flags)
    try:
        return ctypes.CDLL(str(own))
    except OSError as problem:
        raise Unavailable(f"what {compiler()} made of {source.name} cannot be loaded: {problem}") from problem


@cache
def _built(source: Path, digest: str, flags: tuple[str, ...]) -> Path:
    target = cache_folder() / f"{source.stem}-{digest}.so"
    if not target.exists():
        _compile(source, target, flags)
    return target


@cache
def cache_folder() -> Path:
    """Where libraries are kept; where that cannot be written, this user's among the temporary folders."""
    try:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute()
        folder = root / "worldsim" / "native"
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except (OSError, RuntimeError):  # RuntimeError: this user has no home
        return _own_folder()


@cache
def _own_folder() -> Path:
    """``worldsim-native-UID`` among the temporary folders; one of this process alone where that is not ours.

    Code is loaded from it, so nobody else may write there.
    """
    user = os.getuid()
    folder = Path(tempfile.gettempdir()) / f"worldsim-native-{user}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        if stat.S_ISDIR(found.st_mode) and found.st_uid == user and not found.st_mode & 0o077:
            return folder
    except OSError:
        pass
    return Path(tempfile.mkdtemp(prefix="worldsim-native-"))


def _digest(name: str) -> str:
    return _digest_of(CSRC / f"{name}.c")


def _digest_of(source: Path, flags: Sequence[str] = ()) -> str:
    digest = hashlib.sha256(repr((COMMON, TARGETS, _version(), _processor(), *flags)).encode())
    for each in (source, *sorted(CSRC.glob("*.h"))):
        digest.update(each.read_bytes())
    return digest.hexdigest()[:16]


@cache
def _version() -> str:
    path = compiler()
    return "" if path is None else path + _run([*shlex.split(path), "--version"]).stdout


@cache
def _processor() -> str:
    """What ``-march=native`` depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine() + platform.processor()
    kinds = ("model name", "flags", "Features", "CPU part")
    return "".join(dict.fromkeys(line for line in lines if line.startswith(kinds)))


def _compile(source: Path, target: Path, more: Sequence[str] = ()) -> None:
    path, complaint = compiler(), ""
    assert path is not None
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        made = Path(folder) / target.name
        for flags in TARGETS:
            options = [*COMMON, *flags, *more, "-I", str(CSRC)]
            done = _run([*shlex.split(path), *options, "-o", str(made), str(source), "-lm"])
            if done.returncode == 0:
                os.replace(made, target)
                return
            complaint = complaint or done.stderr
    raise Unavailable(f"{path} could not compile {source.name}: {' '.join(complaint.split())[:400]}")


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    except (OSError, subprocess.TimeoutExpired) as problem:
        return subprocess.CompletedProcess(command, 1, "", str(problem))
