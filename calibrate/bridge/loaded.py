"""What the loader hands to the engine: an adapter in shared memory."""

from dataclasses import dataclass, field
from typing import Any

from calibrate.bridge.adapter_file import TensorEntry


class LoaderDied(Exception):
    """The loader's process has ended, or does not answer as it should."""


@dataclass
class Loaded:
    """One adapter that was loaded, or why it was not."""

    key: str
    block: int
    """Number of the block of shared memory that it is in."""
    config: dict[str, Any] = field(default_factory=dict)
    """Its adapter_config.json."""
    entries: list[TensorEntry] = field(default_factory=list)
    """Its tensors; offsets count from the start of the block, and B is scaled by alpha / rank already."""
    layout: str = ""
    """The same for adapters whose blocks have the same tensors in the same places."""
    seconds: float = 0.0
    """What the load took, in the loader's process."""
    error: str | None = None
