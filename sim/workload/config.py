"""The settings of ``conf/workload/*.yaml``."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from sim.errors import UserError
from sim.fields import as_mapping, build, require_positive
from sim.workload import arrivals, lengths, popularity, ranks
from sim.workload.arrivals import Arrivals, Poisson
from sim.workload.drift import Drift
from sim.workload.lengths import Lengths
from sim.workload.popularity import Popularity, Rates
from sim.workload.ranks import RankMix
from sim.workload.traces import FORMATS

MISSING = "???"
"""How Hydra writes a value that the user must give."""


LEAST_RATE, MOST_RATE = 1e-6, 1e9
"""Requests/s: one in eleven days, and one a ns, the simulator's unit of time."""


@dataclass(frozen=True)
class WorkloadConfig:
    """What arrives. Lengths in tokens.

    ``mode="open"``: ``arrivals`` with a mean of ``request_rate`` requests/s, whatever the engine does.
    ``mode="closed"``: ``concurrency`` requests in flight; a finished request is followed by the next one.
    ``duration_s`` ends the arrivals (the last arrives before it) and the run, but with ``until_done`` the run
    goes on until all are done. ``num_requests`` ends the arrivals; the run goes on until all are done. One of
    them is needed; with both, what comes first counts.
    ``adapter_rank`` null means the engine's ``max_lora_rank``. ``base_model_share``: of the requests whose
    adapter is drawn, the share that asks for the base model instead. A client gives up ``abort_ms`` after the
    arrival.

    With a ``path`` the requests are those of a trace (sim.workload.traces), which ends the arrivals too: at
    its own times in the open loop, in its order and ignoring its times in the closed loop. What it does not
    say (adapters, ranks, times) is drawn as for any other workload. ``adapters`` are the names that are
    served; a request for another one is rejected. Null: all that are asked for.
    """

    mode: str
    popularity: Popularity | None
    input_length: Lengths | None
    output_length: Lengths | None
    request_rate: float | None = None
    concurrency: int | None = None
    duration_s: float | None = None
    num_requests: int | None = None
    until_done: bool = False
    num_adapters: int = 1000
    adapter_rank: RankMix | None = None
    base_model_share: float = 0.0
    arrivals: Arrivals = field(default_factory=Poisson)
    drift: Drift | None = None
    abort_ms: float | None = None
    path: str | None = None
    format: str | None = None
    on_bad_line: str = "error"
    adapters: list[str] | None = None
    hash_block_size: int = 512

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], where: str = "workload") -> Self:
        """Build from the resolved ``workload`` section; raises UserError."""
        sections = dict(values)
        recorded = values.get("path") is not None
        if values.get("path") == MISSING:
            raise UserError(f"{where}.path is missing: the file with the requests")
        if not recorded or values.get("popularity") is not None:
            kind = as_mapping(values.get("popularity"), f"{where}.popularity")
            sections["popularity"] = popularity.from_mapping(kind, f"{where}.popularity")
        for side in ("input_length", "output_length"):
            if side in values and not (recorded and values[side] is None):
                sections[side] = lengths.from_value(values[side], f"{where}.{side}")
        if "arrivals" in values:
            process = as_mapping(values["arrivals"], f"{where}.arrivals")
            sections["arrivals"] = arrivals.from_mapping(process, f"{where}.arrivals")
        if values.get("drift") is not None:
            sections["drift"] = build(Drift, as_mapping(values["drift"], f"{where}.drift"), f"{where}.drift")
        sections["adapter_rank"] = ranks.from_value(values.get("adapter_rank"), f"{where}.adapter_rank")
        if isinstance(sections["popularity"], Rates) and values.get("num_adapters") is None:
            sections["num_adapters"] = sections["popularity"].num_adapters
        return build(cls, sections, where)

    @property
    def offered_rate(self) -> float | None:
        """Requests/s of the open loop: ``request_rate``, or what the adapters' own rates add up to."""
        if self.request_rate is None and isinstance(self.popularity, Rates):
            return self.popularity.request_rate
        return self.request_rate

    @property
    def abort_ns(self) -> int | None:
        """``abort_ms`` in ns, 1 at least: a closed loop must not stand still."""
        return None if self.abort_ms is None else max(1, round(self.abort_ms * 1e6))

    def __post_init__(self) -> None:
        positive = ("request_rate", "concurrency", "duration_s", "num_requests", "num_adapters", "abort_ms")
        require_positive("workload", self, *positive, "hash_block_size")
        if not 0 <= self.base_model_share <= 1:
            raise UserError(f"workload.base_model_share={self.base_model_share}: must be between 0 and 1")
        self._check_mode()
        self._check_popularity()
        self._check_trace()
        if self.path is None and self.duration_s is None and self.num_requests is None:
            raise UserError("workload.duration_s and workload.num_requests are both null: one must end it")

    def _check_mode(self) -> None:
        if self.mode not in ("open", "closed"):
            raise UserError(f"workload.mode={self.mode!r}: expected one of open, closed")
        if self.mode == "closed" and self.concurrency is None:
            raise UserError("workload.concurrency is null: workload.mode=closed needs it")
        if self.mode == "closed" and self.until_done:
            raise UserError(
                "workload.until_done=true: a closed loop sends as long as it runs; "
                "expected workload.mode=open, or workload.num_requests in place of it"
            )
        if self.mode == "open" and self.path is None and self.offered_rate is None:
            raise UserError("workload.request_rate is null: workload.mode=open needs it")
        if self.offered_rate is not None and not LEAST_RATE <= self.offered_rate <= MOST_RATE:
            raise UserError(
                f"workload.request_rate={self.offered_rate:g}: expected {LEAST_RATE:g} to {MOST_RATE:g}"
            )

    def _check_popularity(self) -> None:
        if isinstance(self.popularity, Rates) and self.popularity.num_adapters != self.num_adapters:
            raise UserError(
                f"workload.num_adapters={self.num_adapters}: workload.popularity.rate_counts add up to "
                f"{self.popularity.num_adapters}"
            )
        if self.mode == "closed" and self.drift is not None and self.drift.period_requests is None:
            raise UserError(
                "workload.drift.period_s: in a closed loop requests have no time; expected period_requests"
            )

    def _check_trace(self) -> None:
        if self.on_bad_line not in ("error", "skip"):
            raise UserError(f"workload.on_bad_line={self.on_bad_line!r}: expected one of error, skip")
        if self.format is not None and self.format not in FORMATS:
            raise UserError(f"workload.format={self.format!r}: expected one of {', '.join(FORMATS)} or null")
        if self.path is None:
            return
        for side in ("input_length", "output_length"):
            if getattr(self, side) is not None:
                raise UserError(f"workload.{side}: expected null, {self.path} has lengths of its own")
