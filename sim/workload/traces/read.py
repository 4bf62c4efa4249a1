"""Reads a trace of any format and checks what holds for all of them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from hashlib import file_digest
from pathlib import Path
from typing import Any

from sim.errors import UserError
from sim.workload.traces import azure, burstgpt, jsonl, result, vllm_bench
from sim.workload.traces.detect import detect
from sim.workload.traces.opening import BROKEN
from sim.workload.traces.row import BadLine, TraceRow, Unsaid

FORMATS: dict[str, Callable[[Path], Iterator[TraceRow | BadLine]]] = {
    "jsonl": jsonl.read,
    "azure": azure.read,
    "burstgpt": burstgpt.read,
    "vllm_bench": vllm_bench.read,
    "requests": result.read,
}
FROM_FIRST = ("azure", "vllm_bench")
"""Formats whose times count from no start of theirs: here, from the first request."""
SHOWN = 10
LATE_NS = 60 * 10**9


@dataclass
class Trace:
    """The requests of a file, in its order."""

    path: str
    format: str
    sha256: str
    rows: list[TraceRow] = field(default_factory=list)
    ranks: dict[str, int] = field(default_factory=dict)
    """Of the adapters whose rank the trace says."""
    has_times: bool = True
    skipped: int = 0
    skipped_lines: list[str] = field(default_factory=list)
    """What was wrong with the first of them."""

    def late_start(self, warmup_s: float) -> list[str]:
        """Return a warning where the run waits longer for the first request than the others take to come, and
        its metrics count that: such times, as those since 1970, count from no start of a run.
        """
        if not self.has_times:
            return []
        first_ns, last_ns = self.rows[0].time_ns or 0, self.rows[-1].time_ns or 0
        if first_ns <= max(LATE_NS, last_ns - first_ns, warmup_s * 1e9):
            return []
        return [
            f"{self.path}: the first request comes after {first_ns / 1e9:,.0f} s, and the last "
            f"{(last_ns - first_ns) / 1e9:,.0f} s later: rates a second count the wait; "
            "expected times from the start of the run"
        ]

    def report(self) -> dict[str, Any]:
        """Return ``trace`` of ``summary.json``."""
        return {
            "path": self.path,
            "format": self.format,
            "sha256": self.sha256,
            "requests": len(self.rows),
            "skipped_lines": self.skipped,
            "first_skipped_lines": self.skipped_lines,
        }


def read_trace(path: str, format_name: str | None, skip_bad_lines: bool, timed: bool) -> Trace:
    """Read a file; ``timed``: its times matter. Raises UserError, OSError."""
    file = Path(path)
    with file.open("rb") as content:
        digest = file_digest(content, "sha256").hexdigest()
    try:
        trace = Trace(path, format_name or detect(file), digest)
        _read_rows(trace, file, skip_bad_lines, timed)
    except BROKEN as error:
        raise UserError(f"{path}: cannot be decompressed: {error}") from error
    if not trace.rows:
        skipped = f"; bad lines skipped: {trace.skipped}" if trace.skipped else ""
        raise UserError(f"{path}: no requests in it{skipped}")
    return trace


def _read_rows(trace: Trace, file: Path, skip_bad_lines: bool, timed: bool) -> None:
    """Add the rows to ``trace``, checked."""
    check = _Checks(trace, timed)
    for row in FORMATS[trace.format](file):
        found = row if isinstance(row, BadLine) else check(row)
        if isinstance(found, TraceRow):
            trace.rows.append(found)
        elif skip_bad_lines:
            trace.skipped += 1
            if trace.skipped <= SHOWN:
                trace.skipped_lines.append(f"{found.place}: {found.text}")
        else:
            raise UserError(
                f"{trace.path}, {found.place}: {found.text} (workload.on_bad_line=skip leaves such lines out)"
            )


class _Checks:
    """What must hold between the rows of a trace."""

    def __init__(self, trace: Trace, timed: bool) -> None:
        self.trace = trace
        self.timed = timed
        self._start_ns: int | None = None
        self._last = TraceRow("", 0, 1, 1)
        self._ids: dict[str, str] = {}

    def __call__(self, row: TraceRow) -> TraceRow | BadLine:
        """Return ``row`` with its time from the start of the run, or what is wrong with it."""
        problem = self._time(row) or self._identity(row) or self._rank(row)
        if problem:
            return BadLine(row.place, problem)
        if row.time_ns is not None and self.trace.format in FROM_FIRST:
            self._start_ns = row.time_ns if self._start_ns is None else self._start_ns
            row = row._replace(time_ns=row.time_ns - self._start_ns)
        self._last = row
        if row.request_id is not None:
            self._ids[row.request_id] = row.place
        if row.rank is not None and isinstance(row.adapter, str):
            self.trace.ranks[row.adapter] = row.rank
        return row

    def _time(self, row: TraceRow) -> str | None:
        if not self.timed:
            return None
        if not self.trace.rows:
            self.trace.has_times = row.time_ns is not None
        if not self.trace.has_times:
            return None if row.time_ns is None else f"timestamp: {self.trace.rows[0].place} has none"
        if row.time_ns is None:
            return "timestamp is missing"
        time_ns = row.time_ns - (self._start_ns or 0)
        last_ns = self._last.time_ns or 0
        if time_ns < last_ns:
            return f"the time goes back, by {(last_ns - time_ns) / 1e6:g} ms, from {self._last.place}"
        return None

    def _identity(self, row: TraceRow) -> str | None:
        if row.request_id is not None and row.request_id in self._ids:
            return f"request_id={row.request_id!r} occurs in {self._ids[row.request_id]} already"
        return None

    def _rank(self, row: TraceRow) -> str | None:
        if row.rank is None or row.adapter is None:
            return None
        if isinstance(row.adapter, Unsaid):
            return f"rank={row.rank}: the line has no adapter"
        known = self.trace.ranks.get(row.adapter, row.rank)
        return None if known == row.rank else f"rank={row.rank}: {row.adapter} has rank {known} above"
