"""What a plugin is given to read it may not change: others go on reading it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor


@contextmanager
def untouched(who: str, given: Mapping[str, Tensor | None]) -> Iterator[None]:
    """Raises ValueError that names ``who`` when a tensor of ``given`` was changed in place meanwhile.

    By torch's own count of such changes, which costs nothing; what numpy changes is not counted, nor what
    was made under ``torch.inference_mode``.
    """
    tensors = {name: each for name, each in given.items() if each is not None and not each.is_inference()}
    before = {name: each._version for name, each in tensors.items()}
    yield
    changed = [name for name, each in tensors.items() if each._version != before[name]]
    if changed:
        raise ValueError(
            f"{who} changed the {' and '.join(changed)} that it was given in place, and others read the "
            "same tensors: let it work on a copy, clone()"
        )
