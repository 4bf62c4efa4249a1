"""Which adapter sits in which slot, with loads and evictions, from a run's ``adapters.parquet``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from reports import svg
from reports.svg import SERIES, Plot
from sim.errors import UserError
from sim.results import read_adapters, read_summary

WIDTH_IN = 9.6


@dataclass(frozen=True)
class Stay:
    """An adapter in a slot. Times are s."""

    slot: int
    adapter: str
    begin_s: float
    end_s: float


def timeline(folder: Path, start_s: float, length_s: float, replica: int = 0) -> Plot:
    """Return the slots of one replica of the run in ``folder`` over a part of its time. Raises UserError."""
    config = read_summary(folder).get("config", {})
    moves = [
        move for move in read_adapters(folder).to_pylist() if move.get("replica", 0) == replica
    ]  # fmt: skip
    if not moves:
        raise UserError(f"{folder}: adapters.parquet has nothing of replica {replica}")
    end_s = start_s + length_s
    shown = [it for it in stays(moves, end_s) if it.end_s > start_s and it.begin_s < end_s]
    within = [move for move in moves if start_s <= move["time_s"] < end_s]
    num_slots = max([it.slot for it in shown], default=0) + 1

    def paint(axes: Axes) -> None:
        for stay in shown:
            _bar(axes, stay, start_s, end_s)
        _loads(axes, within, num_slots)
        axes.set_xlim(start_s, end_s)
        axes.set_ylim(num_slots + 0.9, -0.6)
        axes.set_xlabel("time, s")
        ticks = sorted({*range(0, num_slots, max(1, num_slots // 8)), num_slots - 1})
        axes.set_yticks([*ticks, num_slots + 0.3], [*(f"slot {slot}" for slot in ticks), "loads"])
        axes.grid(visible=False)

    counts = {
        kind: sum(move["kind"] == kind for move in within) for kind in ("load", "activate", "evict_slot")
    }
    named = [_policy(config, group) for group in ("admission", "eviction", "prefetch")]
    policies = " + ".join(name for name in named if name != "none")
    caption = (
        f"{policies}: what each slot holds from {start_s:g} to {end_s:g} s. A number is the adapter's; "
        "a bar ends where it is evicted. Marks at the bottom: loads from disk, as wide as they last (a thin "
        f"one: beside the engine's work). {counts['load']} loads, {counts['activate']} activations, "
        f"{counts['evict_slot']} evictions from slots."
    )
    title = f"Slots over time, {folder.name}"
    alt = [f"slot {it.slot}: {it.adapter} from {it.begin_s:.2f} to {it.end_s:.2f} s." for it in shown[:200]]
    return svg.draw(title, caption, alt, paint, (WIDTH_IN, 1.1 + 0.17 * num_slots))


def _policy(config: Mapping[str, Any], group: str) -> str:
    """Return a policy by the name of its class: `vllm_queue`, `QueueAware`, `none`."""
    name = str((config.get(group) or {}).get("_target_", "none")).rpartition(".")[2]
    return {"vllm_queue": "vLLM's queue", "NoPrefetch": "none"}.get(name, name)


def stays(moves: Sequence[dict[str, Any]], end_s: float) -> list[Stay]:
    """Return how long each adapter held which slot; what is still there stays until ``end_s``."""
    held: dict[int, tuple[str, float]] = {}
    found = []
    for move in moves:
        slot, begun_s = move["slot"], move["time_s"]
        if slot is None:
            continue
        if move["kind"] == "activate":
            held[slot] = move["adapter"], begun_s
        elif slot in held:
            adapter, since_s = held.pop(slot)
            found.append(Stay(slot, adapter, since_s, begun_s))
    found += [Stay(slot, adapter, since_s, max(since_s, end_s)) for slot, (adapter, since_s) in held.items()]
    return sorted(found, key=lambda stay: (stay.slot, stay.begin_s))


def _bar(axes: Axes, stay: Stay, start_s: float, end_s: float) -> None:
    begin_s, last_s = max(stay.begin_s, start_s), min(stay.end_s, end_s)
    digits = "".join(letter for letter in stay.adapter if letter.isdigit())
    colour = SERIES[int(digits or "0") % len(SERIES)]
    bar: Any = {"height": 0.86, "color": colour, "alpha": 0.45, "edgecolor": svg.PAPER, "linewidth": 0.6}
    axes.barh(stay.slot, last_s - begin_s, left=begin_s, **bar)
    text = digits.lstrip("0") or digits[-1:] or stay.adapter
    if (last_s - begin_s) / (end_s - start_s) > 0.011 * len(text):
        middle = (begin_s + last_s) / 2
        axes.text(middle, stay.slot, text, ha="center", va="center", size=6.5, color=svg.INK)


def _loads(axes: Axes, moves: Sequence[dict[str, Any]], num_slots: int) -> None:
    for move in moves:
        if move["kind"] == "load":
            length_s = (move["duration_ms"] or 0.0) / 1000
            place: Any = {"left": move["time_s"] - length_s, "height": 0.6, "color": svg.LOADING}
            axes.barh(num_slots + 0.3, length_s, edgecolor=svg.LOADING, linewidth=0.4, **place)
