"""Files: written whole or not at all, and read only where they are plain files of a bearable size."""

from __future__ import annotations

import errno
import hashlib
import os
import platform
import re
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, TypeVar

from worldsim.errors import ResultError

T = TypeVar("T")

ATTEMPTS = 5
"""How often a call is made that a signal interrupts before it has done anything."""

PART = re.compile(r"\.(?:([0-9a-f]{8})\.)?(\d+)\.part$")
HOST = hashlib.sha256(platform.node().encode()).hexdigest()[:8]
STALE = 24 * 3600.0
"""Seconds after which the half of a file that another machine was writing counts as left behind."""

ADVICE = {
    errno.ENOSPC: "the disk is full, free some space there",
    errno.EDQUOT: "the quota there is used up, free some space or ask for more",
    errno.EFBIG: "files there may not become this large (ulimit -f)",
    errno.EROFS: "nothing can be written there, choose another folder with --out",
    errno.EACCES: "you may not write there, change its permissions or choose another folder with --out",
    errno.EPERM: "you may not write there, change its permissions or choose another folder with --out",
    errno.ENAMETOOLONG: "choose a folder with a shorter path with --out",
    errno.ENOTDIR: "a file stands where a folder is needed",
    errno.EISDIR: "a folder stands where a file is needed, move it away",
    errno.EIO: "the disk or the network has failed, look at the system's log",
}


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Call ``write`` on a temporary name beside ``path``, flush to disk, then rename into place.

    What a signal interrupts begins again. Raises OSError that names ``path`` and says what is needed;
    then what was there before still is, and no half of a file.
    """
    try:
        persevere(lambda: _write_once(path, write))
    except OSError as error:
        raise told(error, path) from error


def _write_once(path: Path, write: Callable[[Path], object]) -> None:
    make_folder(path.parent)
    part = path.with_name(f"{path.name}.{HOST}.{os.getpid()}.part")
    try:
        write(part)
        flush(part)
        os.replace(part, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(part)
        raise
    flush_folder(path.parent)


def write_bytes(path: Path, data: bytes) -> None:
    """``data`` at ``path``, whole or not at all; the error of a full disk says how much is needed."""
    try:
        write_whole(path, lambda part: _put(part, data))
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            error.strerror = f"{error.strerror}; {len(data) / 2**20:.2f} MiB are needed"
        raise


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode("utf-8"))


def _put(part: Path, data: bytes) -> None:
    file = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0), 0o666)
    try:
        rest = memoryview(data)
        while len(rest):
            rest = rest[os.write(file, rest) :]
    finally:
        os.close(file)


def flush(path: Path) -> None:
    """Have the bytes of a file on disk."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def flush_folder(folder: Path) -> None:
    """Have the names in a folder on disk: a rename is a change of the folder, and until that is written a
    power cut can take back a file that was reported as kept."""
    if os.name == "nt":  # a folder cannot be opened there
        return
    try:
        flush(folder)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems have no such call
            raise


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, and have their names on disk."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    with suppress(FileExistsError):
        os.mkdir(folder)
    flush_folder(folder.parent)


def persevere(call: Callable[[], T]) -> T:
    """What ``call`` gives; it is called again when a signal interrupts it."""
    for _ in range(ATTEMPTS - 1):
        with suppress(InterruptedError):
            return call()
    return call()


def told(error: OSError, path: Path) -> OSError:
    """``error`` with the file's name and what to do."""
    if error.errno is None:
        return error
    advice = ADVICE.get(error.errno, "")
    reason = os.strerror(error.errno)
    return OSError(error.errno, f"{reason}: {advice}" if advice else reason, str(path))


def refuse_unwritable(folder: Path) -> None:
    """Raises OSError unless files can be written in ``folder``: names as long as any that is kept, and bytes,
    for a full disk takes names still."""
    probe = folder / f".{'0' * 32}.writable.{HOST}.{os.getpid()}.part"
    write_bytes(probe, bytes(4096))
    with suppress(OSError):
        os.unlink(probe)


def is_file(path: Path) -> bool:
    """Whether a plain file stands there: no folder, link, FIFO or device."""
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise told(error, path) from error


def opened(path: Path) -> BinaryIO:
    """A plain file, opened for reading; ResultError for anything else that stands there.

    A link is not followed, because it may lead out of the folder, and a FIFO is not waited for.
    """
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0)
    flags |= getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        file = persevere(lambda: os.open(path, flags))
    except FileNotFoundError:
        raise ResultError(f"there is no file {path}") from None
    except OSError as error:
        what = "is a symbolic link" if error.errno == errno.ELOOP else f"cannot be read ({error.strerror})"
        raise ResultError(f"{path} {what}") from error
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise ResultError(f"{path} is not a plain file")
    return os.fdopen(file, "rb")


def content(path: Path, limit: int | None = None) -> bytes:
    """The bytes of a plain file; ResultError when it cannot be read, or is longer than ``limit``."""
    with opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        if limit is not None and size > limit:
            raise ResultError(
                f"{path} is refused: {size / 2**20:.0f} MiB, at most {limit / 2**20:.0f} allowed"
            )
        pieces = []
        try:
            while piece := persevere(lambda: os.read(file.fileno(), max(size, 1))):
                pieces.append(piece)
        except OSError as error:
            raise ResultError(f"{path} cannot be read ({error.strerror})") from error
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def stale_parts(root: Path) -> Iterator[Path]:
    """Halves of files in ``root`` whose writers are gone."""
    for folder, _, names in os.walk(root):
        yield from (Path(folder, name) for name in names if is_left(Path(folder, name)))


def is_left(part: Path) -> bool:
    """Whether ``part`` is half of something whose writer is gone: its process, or a day without a change."""
    found = PART.search(part.name)
    if not found:
        return False
    host, pid = found.groups()
    if host == HOST and os.name != "nt":
        try:
            os.kill(int(pid), 0)
        except (ProcessLookupError, OverflowError):
            return True
        except PermissionError:
            pass
        return False
    try:
        return time.time() - part.lstat().st_mtime > STALE
    except OSError:
        return False
