"""A simulated workload, played on the real engine."""

import time
from collections.abc import Iterator
from itertools import islice
from typing import Any

import pandas as pd

from calibrate.engine import VllmEngine
from sim.errors import UserError
from sim.workload import RequestSpec, WorkloadConfig, requests

PREPARED = 2000
"""Requests whose prompts are drawn and hashed before the clock starts; later ones as they come."""


class Replay:
    """Plays one workload: arrivals by the wall clock (open) or on completion (closed), until `duration_s`."""

    def __init__(self, engine: VllmEngine, config: WorkloadConfig, seed: int) -> None:
        self.engine, self.config = engine, config
        specs = requests(config, seed)
        prepared = [(spec, self._prepare(spec)) for spec in islice(specs, PREPARED)]
        self._upcoming = self._chain(prepared, specs)
        self._next = next(self._upcoming, None)
        self.rows: dict[str, dict[str, Any]] = {}
        self._tokens: dict[str, list[int]] = {}
        self._start, self._duration_s = 0.0, config.duration_s or 0.0

    def _prepare(self, spec: RequestSpec) -> Any:
        return self.engine.prepare(spec.request_id, spec.input_length, spec.output_length, spec.adapter)

    def _chain(
        self, prepared: list[tuple[RequestSpec, Any]], rest: Iterator[RequestSpec]
    ) -> Iterator[tuple[RequestSpec, Any]]:
        yield from prepared
        for spec in rest:
            yield spec, self._prepare(spec)

    def run(self) -> pd.DataFrame:
        """Play the workload; return a row a request with times in seconds since its start, as
        `requests.parquet`.
        """
        self._start = time.perf_counter()
        if self.config.mode == "closed":
            for _ in range(self.config.concurrency or 0):
                self._submit(0.0)
        while (now := self._now()) < self._duration_s:
            self._submit_arrived(now)
            if self.engine.has_requests():
                self._take(self.engine.step())
            elif self._next is None:
                break
            else:
                time.sleep(max(0.0, min(self._next[0].arrival_ns / 1e9, self._duration_s) - self._now()))
        unfinished = [name for name, row in self.rows.items() if row["finish_s"] is None]
        self.engine.abort(unfinished)
        self.engine.drain()
        return pd.DataFrame(self.rows.values())

    def outputs(self) -> pd.DataFrame:
        """Return what each finished request has generated, as token ids."""
        finished = [name for name, row in self.rows.items() if row["finish_s"] is not None]
        return pd.DataFrame({"request_id": finished, "token_ids": [self._tokens[name] for name in finished]})

    def _now(self) -> float:
        return time.perf_counter() - self._start

    def _submit_arrived(self, now: float) -> None:
        while self.config.mode == "open" and self._next is not None and self._next[0].arrival_ns <= now * 1e9:
            self._submit(self._next[0].arrival_ns / 1e9)

    def _submit(self, arrival_s: float) -> None:
        if self._next is None:
            return
        spec, request = self._next
        self.engine.submit(request)
        self.rows[spec.request_id] = {
            "request_id": spec.request_id,
            "adapter": spec.adapter,
            "arrival_s": arrival_s,
            "first_token_s": None,
            "finish_s": None,
            "input_length": spec.input_length,
            "output_length": spec.output_length,
            "num_generated_tokens": 0,
        }
        self._tokens[spec.request_id] = []
        self._next = next(self._upcoming, None)

    def _take(self, outputs: list[Any]) -> None:
        now = self._now()
        if now >= self._duration_s:  # These tokens came after the end.
            return
        for output in outputs:
            row = self.rows[output.request_id]
            row["num_generated_tokens"] += len(output.new_token_ids)
            self._tokens[output.request_id] += output.new_token_ids
            if row["first_token_s"] is None:
                row["first_token_s"] = now
            if output.finished:
                row["finish_s"] = now
                if self.config.mode == "closed":
                    self._submit(now)


def workload_of(play: dict[str, Any]) -> WorkloadConfig:
    """Return the workload of a play; UserError for what is none, or has no end."""
    workload = WorkloadConfig.from_mapping(play["workload"])
    if workload.duration_s is None:
        raise UserError(f"workload.duration_s is null: the replay {play['name']} needs it")
    return workload
