"""A case's trajectories as one file: a Zarr v3 group in an uncompressed zip, with where it comes from beside.

What is read may come from a stranger. So the zip's members are stored, not packed, and together no longer
than the file; and no array, and no chunk that is unpacked, may take more memory than ``allowance``.
"""

from __future__ import annotations

import io
import json
import math
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from worldsim.errors import ResultError
from worldsim.files import content, opened
from worldsim.seals import BLANK, is_whole, sealed

if TYPE_CHECKING:
    import xarray as xr

EPOCH = (1980, 1, 1, 0, 0, 0)
"""The date of every member of a result file: bytes must not depend on the clock."""

MAX_MEMBERS = 65_535
"""What a zip without extensions can hold; also how many chunks the arrays of one file may have."""
MAX_DIRECTORY = 16 * 2**20
"""Bytes of a zip's list of members."""
MAX_COMMENT = 65_535
MAX_METADATA = 4 * 2**20
"""Bytes of one ``zarr.json``."""

MEMBER = re.compile(r"(?!.*(?:^|/)\.{1,2}(?:/|$))[^/\\\x00-\x1f][^\\\x00-\x1f]*")
DTYPE = re.compile(r"bool|u?int(8|16|32|64)|float(16|32|64)|complex(64|128)")
LONGEST_TEXT = 4096
"""Bytes of a label that is kept as an array."""
CODECS = {"bytes", "zstd", "crc32c"}
ZSTD = b"\x28\xb5\x2f\xfd"


def allowance(size: int) -> int:
    """How many bytes a file of ``size`` bytes may become in memory."""
    return max(256 * 2**20, 1000 * size)


def zip_tree(tree: xr.DataTree, provenance: Mapping[str, Any]) -> bytes:
    """A Zarr v3 group in an uncompressed zip with fixed dates: equal trees give equal bytes.

    The zip's comment is ``provenance``, and the checksum of the whole file.
    """
    return packed(members_of(tree), provenance)


def members_of(tree: xr.DataTree) -> dict[str, bytes]:
    """The files that Zarr makes of ``tree``, by name."""
    from zarr.storage import MemoryStore

    from worldsim.trees import without_labels

    memory: dict[str, Any] = {}
    tree.map_over_datasets(without_labels).to_zarr(MemoryStore(memory), consolidated=False, zarr_format=3)
    if len(memory) > MAX_MEMBERS:
        raise ResultError(
            f"the rollouts make {len(memory)} chunks, at most {MAX_MEMBERS} can be kept in a file"
        )
    return {name: value.to_bytes() for name, value in memory.items()}


def packed(members: Mapping[str, bytes], provenance: Mapping[str, Any]) -> bytes:
    """The zip of ``members``. zarr's own ZipStore stamps the local time, so that the same result would differ
    from run to run."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(members, key=lambda n: (n != "zarr.json", n)):
            archive.writestr(zipfile.ZipInfo(name, EPOCH), members[name])
        archive.comment = _comment(provenance)
    return sealed(out.getvalue())


def _comment(provenance: Mapping[str, Any]) -> bytes:
    """JSON that ends with the place of the checksum; a comment has a length, so the longest entries may be
    left out."""
    kept = dict(provenance)
    while True:
        text = json.dumps({**dict(sorted(kept.items())), "sha256": BLANK}).encode()
        if len(text) <= MAX_COMMENT:
            return text
        longest = max(kept, key=lambda name: len(json.dumps(kept[name])))
        kept[longest] = "left out, for it is too long"


def open_zip(path: Path) -> xr.DataTree:
    """The tree of a result file, loaded, checksums checked; ResultError when it is missing or damaged, or
    would take more memory than such a file can need."""
    with opened(path) as file:
        return read_zip(file, path)


def read_zip(file: BinaryIO, path: Path) -> xr.DataTree:
    """As ``open_zip``; ``path`` is what an error names."""
    import xarray as xr
    from zarr.core.buffer import default_buffer_prototype
    from zarr.storage import MemoryStore

    from worldsim.trees import with_labels

    buffer = default_buffer_prototype().buffer
    try:
        memory = {name: buffer.from_bytes(data) for name, data in _members(file).items()}
        store: Any = MemoryStore(memory, read_only=True)
        groups = xr.open_groups(store, engine="zarr", consolidated=False, decode_times=False)
        return xr.DataTree.from_dict({name: with_labels(group.load()) for name, group in groups.items()})
    except OSError as error:
        raise ResultError(f"{path} cannot be read ({error.strerror})") from error
    except Exception as error:  # whatever a stranger's bytes provoke in zipfile, zarr or xarray
        raise ResultError(
            f"{path} is damaged ({type(error).__name__}: {error}); delete it, and the case runs again"
        ) from None


def provenance_of(path: Path) -> dict[str, Any]:
    """What stands beside the data; ResultError when it cannot be read."""
    with opened(path) as file:
        return _provenance(file, path)


def _provenance(file: BinaryIO, path: Path) -> dict[str, Any]:
    try:
        _check_directory(file)
        with zipfile.ZipFile(file) as archive:
            kept = dict(json.loads(archive.comment))
    except (OSError, ValueError, TypeError, RecursionError, zipfile.BadZipFile) as error:
        raise ResultError(f"{path} does not say where it comes from ({error})") from None
    kept.pop("sha256", None)
    return kept


def whole_zip(path: Path) -> tuple[xr.DataTree, dict[str, Any], bool]:
    """The tree of a result file, what stands beside it, and whether the file has a checksum.

    Raises ResultError when anything of it is damaged. Earlier versions made no checksum, and cut what was too
    long to stand beside.
    """
    data = content(path)
    whole = is_whole(data)
    if whole is False:
        raise ResultError(f"{path} is damaged (it is not what its checksum was made of)")
    tree = read_zip(io.BytesIO(data), path)
    cut = not whole and data[-MAX_COMMENT - 22 :].startswith(b"PK\5\6")
    return tree, {} if cut else _provenance(io.BytesIO(data), path), bool(whole)


def _members(file: BinaryIO) -> dict[str, bytes]:
    """Name -> bytes; ValueError or BadZipFile for what worldsim would not have written."""
    size = _check_directory(file)
    with zipfile.ZipFile(file) as archive:
        infos = archive.infolist()
        if len({info.filename for info in infos}) != len(infos):
            raise ValueError("a member comes twice")
        for info in infos:
            if not MEMBER.fullmatch(info.filename):
                raise ValueError(f"a member is named {info.filename!r:.80}")
            if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
                raise ValueError(
                    f"member {info.filename!r:.80} is packed or encrypted, and may only be stored"
                )
        if sum(info.file_size for info in infos) > size:
            raise ValueError("its members are longer than the file: they overlap")
        members = {info.filename: archive.read(info) for info in infos}
    _check_arrays(members, allowance(size))
    return members


def _check_directory(file: BinaryIO) -> int:
    """The file's size; ValueError when its list of members is longer than one can be: zipfile reads all of
    it before anything else. A zip has no extension (zip64) unless it is larger than 4 GiB."""
    size = file.seek(0, io.SEEK_END)
    file.seek(max(0, size - MAX_COMMENT - 22 - 20 - 56))
    tail = file.read()
    file.seek(0)
    end = tail.rfind(b"PK\5\6")
    if end < 0 or len(tail) - end < 22:
        raise zipfile.BadZipFile("it is no zip, or its end is missing")
    length = int.from_bytes(tail[end + 12 : end + 16], "little")
    if tail[max(0, end - 20) :][:4] == b"PK\6\7":
        if size < 2**32 - 2**20:
            raise ValueError("a zip of less than 4 GiB needs no extension for larger ones")
        length = int.from_bytes(tail[max(0, end - 20 - 56) :][40:48], "little")
    if length > MAX_DIRECTORY:
        raise ValueError(f"its list of members has {length} bytes, at most {MAX_DIRECTORY} are allowed")
    return size


def _check_arrays(members: Mapping[str, bytes], allowed: int) -> None:
    """Raises ValueError for arrays or chunks that would take more than ``allowed`` bytes, all together."""
    total = chunks = 0
    packed: dict[str, int] = {}
    for name, data in members.items():
        if name.rpartition("/")[2] == "zarr.json":
            if len(data) > MAX_METADATA:
                raise ValueError(f"{name!r:.80} has {len(data)} bytes, at most {MAX_METADATA} are allowed")
            about = json.loads(data)
            if about.get("node_type") == "array":
                whole, chunk, count = _array_sizes(about, name)
                total, chunks = total + max(whole, chunk), chunks + count
                if any(codec["name"] == "zstd" for codec in about["codecs"]):
                    packed[name.removesuffix("zarr.json")] = chunk
    if total > allowed or chunks > MAX_MEMBERS:
        raise ValueError(
            f"its arrays take {total} bytes in {chunks} chunks; this file may have at most "
            f"{allowed} bytes in {MAX_MEMBERS} chunks"
        )
    for name, data in members.items():
        array = next((prefix for prefix in _above(name) if prefix in packed), None)
        if array is not None and not name.endswith("zarr.json") and unpacked_size(data) > packed[array]:
            raise ValueError(f"chunk {name!r:.80} unpacks to more than its array says")


def _above(name: str) -> Iterator[str]:
    while "/" in name:
        name = name.rpartition("/")[0]
        yield name + "/"


def _array_sizes(about: Mapping[str, Any], name: str) -> tuple[int, int, int]:
    """(bytes of the array, bytes of a chunk, number of chunks). Raises ValueError for another layout."""
    width, codecs = _width(about["data_type"]), [codec["name"] for codec in about["codecs"]]
    if not width or sorted(codecs) != sorted(set(codecs) & CODECS):
        said = f"dtype {about['data_type']!r:.40} and codecs {codecs!r:.80}"
        raise ValueError(f"{name!r:.80} has {said}, as no result has")
    if about.get("storage_transformers") or about["chunk_grid"]["name"] != "regular":
        raise ValueError(f"{name!r:.80} is laid out as no result is")
    shape, chunk = about["shape"], about["chunk_grid"]["configuration"]["chunk_shape"]
    whole = all(type(n) is int and n >= 0 for n in [*shape, *chunk])
    if not whole or len(shape) != len(chunk) or len(shape) > 32 or 0 in chunk:
        raise ValueError(f"{name!r:.80} has the shape {shape!r:.80} in chunks {chunk!r:.80}")
    count = math.prod(-(-n // c) for n, c in zip(shape, chunk))
    return math.prod(shape) * width, math.prod(chunk) * width, count


def _width(dtype: Any) -> int:
    """Bytes of one number, truth value or short text; 0 for any other type."""
    if isinstance(dtype, str) and DTYPE.fullmatch(dtype):
        return int((re.search(r"\d+$", dtype) or ["8"])[0]) // 8
    if isinstance(dtype, dict) and dtype.get("name") == "fixed_length_utf32":
        length = dtype["configuration"]["length_bytes"]
        return length if type(length) is int and 0 < length <= LONGEST_TEXT else 0
    return 0


def unpacked_size(data: bytes) -> int:
    """What a Zstandard frame says that it unpacks to, which is what a decoder makes room for (RFC 8878,
    3.1.1.1). Raises ValueError for what is no frame, or does not say it."""
    if not data.startswith(ZSTD) or len(data) < 6:
        raise ValueError("a chunk is no Zstandard frame")
    flags = data[4]
    single, code = flags >> 5 & 1, flags >> 6
    if code == 0 and not single:
        raise ValueError("a chunk does not say how long it unpacks to")
    at = 5 + (1 - single) + (0, 1, 2, 4)[flags & 3]
    return int.from_bytes(data[at : at + (1, 2, 4, 8)[code]], "little") + (256 if code == 1 else 0)
