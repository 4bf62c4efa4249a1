"""Which setting to recommend, and by which rule."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from reports.sweep.load import Row

TOLERANCE = 0.01
RULE = (
    "Per traffic shape: among the runs within 1\u202f% of the highest output throughput, the one with the "
    "lowest p99 TTFT. One setting for all shapes: the one whose worst loss of output throughput over the "
    "shapes, each against that shape’s highest, is smallest; losses that agree to 0.1\u202f% count as equal, "
    "and the lower p99 TTFT (worst over the shapes) decides. A failed run counts as a loss of 100\u202f%."
)


@dataclass(frozen=True)
class Recommendation:
    """One setting for all traffic shapes."""

    setting: str
    rows: dict[str, Row]
    """Its runs by traffic shape, without those that failed."""
    losses: dict[str, float]
    """By traffic shape: the fraction lost of its highest output throughput; 1 where the run failed."""

    @property
    def worst_loss(self) -> float:
        """The largest of the losses."""
        return max(self.losses.values())

    @property
    def worst_p99_ttft(self) -> float:
        """The highest p99 TTFT over the traffic shapes in ms."""
        return max(p99_ttft(row) for row in self.rows.values())

    @property
    def row(self) -> Row:
        """One of its runs; what a server is started with is the same in all."""
        return next(iter(self.rows.values()))

    @property
    def serve_command(self) -> str:
        """The complete ``vllm serve`` command line."""
        return str(self.row.summary["vllm_serve_command"])


def traffics(rows: Iterable[Row]) -> list[str]:
    """Return the traffic shapes in order of first appearance."""
    return list(dict.fromkeys(row.traffic for row in rows))


def throughput(row: Row) -> float:
    """Return output tokens/s, 0 for a run that failed."""
    return (row.metric("output_throughput") or 0.0) if row.ok else 0.0


def p99_ttft(row: Row) -> float:
    """Return p99 TTFT in ms, infinite where no request got a first token."""
    value = row.metric("p99_ttft_ms") if row.ok else None
    return math.inf if value is None else value


def best(rows: Iterable[Row], traffic: str) -> Row | None:
    """Return the best run of a traffic shape by RULE, or None if all have failed."""
    ok = [row for row in rows if row.traffic == traffic and row.ok]
    if not ok:
        return None
    enough = (1 - TOLERANCE) * max(throughput(row) for row in ok)
    return min(
        (row for row in ok if throughput(row) >= enough), key=lambda row: (p99_ttft(row), row.max_loras or 0)
    )


def recommend(rows: Sequence[Row]) -> Recommendation | None:
    """Return the one setting for all traffic shapes by RULE, or None if every run has failed.

    A traffic shape under which every run failed says nothing and is left out.
    """
    tops = {
        traffic: max(throughput(row) for row in rows if row.traffic == traffic) for traffic in traffics(rows)
    }
    tops = {traffic: top for traffic, top in tops.items() if top > 0}
    settings = dict.fromkeys(row.setting for row in rows if row.ok) if tops else {}
    found = [_recommendation(rows, setting, tops) for setting in settings]
    return min(found, key=lambda it: (round(it.worst_loss, 3), it.worst_p99_ttft), default=None)


def _recommendation(rows: Sequence[Row], setting: str, tops: Mapping[str, float]) -> Recommendation:
    own = {row.traffic: row for row in rows if row.setting == setting and row.ok}
    losses = {
        traffic: 1 - throughput(own[traffic]) / top if traffic in own else 1.0
        for traffic, top in tops.items()
    }
    return Recommendation(setting, own, losses)
