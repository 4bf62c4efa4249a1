"""Columns of ``adapters.parquet``: what happened to adapters, and when."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa

from sim.adapters import AdapterEvent
from sim.columns import table
from sim.metrics import NS_PER_MS, NS_PER_S
from sim.results import ADAPTERS_SCHEMA
from sim.steps import StepRecord


class AdapterMove(NamedTuple):
    """An event with its time."""

    begin_ns: int
    duration_ns: int | None
    """None: not known, of a load beside the engine's work, which begins unseen."""
    kind: str
    adapter: str
    slot: int | None

    @property
    def end_ns(self) -> int:
        """When it is done."""
        return self.begin_ns + (self.duration_ns or 0)


class AdapterLog:
    """Takes the adapters' moves of one replica, those of the warm-up too."""

    def __init__(self) -> None:
        self.moves: list[AdapterMove] = []

    def begin(self, slots: Mapping[str, int]) -> None:
        """Take note of the adapters that have a slot when the run starts."""
        self.moves += [AdapterMove(0, 0, "activate", adapter, slot) for adapter, slot in slots.items()]

    def on_step(self, record: StepRecord) -> None:
        """Add the moves of a step: one after another on the host thread, after it has scheduled.

        The record knows how long a step's loads take together, and its activations; each gets an equal share.
        """
        durations_ns = {"load": record.load_ns, "activate": record.activate_ns}
        counts = {kind: sum(event.kind == kind for event in record.events) for kind in durations_ns}
        done = dict.fromkeys(durations_ns, 0)
        start_ns = record.schedule_ns + record.cost.schedule_ns
        for event in record.events:
            begin_ns = start_ns + sum(durations_ns[k] * done[k] // counts[k] for k in done if done[k])
            if event.kind in done:
                done[event.kind] += 1
            end_ns = start_ns + sum(durations_ns[k] * done[k] // counts[k] for k in done if done[k])
            self.moves.append(AdapterMove(begin_ns, end_ns - begin_ns, *event))

    def on_swaps(self, events: Sequence[AdapterEvent], now_ns: int) -> None:
        """Add what was done beside the engine's work."""
        self.moves += [AdapterMove(now_ns, None if event.kind == "load" else 0, *event) for event in events]

    def table(self) -> pa.Table:
        """Return all rows, as ADAPTERS_SCHEMA."""
        moves = self.moves
        durations_ns = [move.duration_ns for move in moves]
        columns: list[list[Any]] = [
            [move.end_ns / NS_PER_S for move in moves],
            [None if duration is None else duration / NS_PER_MS for duration in durations_ns],
            [move.kind for move in moves],
            [move.adapter for move in moves],
            [move.slot for move in moves],
        ]
        return table(columns, ADAPTERS_SCHEMA)
