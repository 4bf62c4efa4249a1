"""The settings of ``conf/workload/*.yaml``."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from sim.errors import UserError
from sim.fields import as_mapping, build, require_positive
from sim.workload.popularity import Popularity, from_mapping


@dataclass(frozen=True)
class WorkloadConfig:
    """What arrives. Lengths in tokens.

    ``mode="open"``: Poisson arrivals at ``request_rate`` requests/s, whatever the engine does.
    ``mode="closed"``: ``concurrency`` requests in flight; a finished request is followed by the next one.
    ``duration_s`` ends the arrivals (the last arrives before it) and the run. ``num_requests`` ends the
    arrivals; the run goes on until all are done. One of them is needed; with both, what comes first counts.
    ``adapter_rank`` null means the engine's ``max_lora_rank``.
    """

    mode: str
    popularity: Popularity
    input_length: int
    output_length: int
    request_rate: float | None = None
    concurrency: int | None = None
    duration_s: float | None = None
    num_requests: int | None = None
    num_adapters: int = 1000
    adapter_rank: int | None = None

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], where: str = "workload") -> Self:
        """Build from the resolved ``workload`` section; raises UserError."""
        kind = as_mapping(values.get("popularity"), f"{where}.popularity")
        return build(cls, {**values, "popularity": from_mapping(kind, f"{where}.popularity")}, where)

    def __post_init__(self) -> None:
        require_positive(
            "workload",
            self,
            "request_rate",
            "concurrency",
            "duration_s",
            "num_requests",
            "num_adapters",
            "input_length",
            "output_length",
            "adapter_rank",
        )
        needed = {"open": "request_rate", "closed": "concurrency"}
        if self.mode not in needed:
            raise UserError(f"workload.mode={self.mode!r}: expected one of {', '.join(needed)}")
        if getattr(self, needed[self.mode]) is None:
            raise UserError(f"workload.{needed[self.mode]} is null: workload.mode={self.mode} needs it")
        if self.duration_s is None and self.num_requests is None:
            raise UserError("workload.duration_s and workload.num_requests are both null: one must end it")
