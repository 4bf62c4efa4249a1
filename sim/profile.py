"""Profiles: the YAML files of `conf/profile`, checked, and the cost model that a fitted one describes."""

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

import numpy as np

from sim.config import EngineConfig, ModelConfig
from sim.costs import FS_PER_NS, ConstantCosts, CostModel, StepCost, StepShape
from sim.errors import UserError
from sim.fields import as_mapping, build
from sim.memory import MemoryProfile
from sim.terms import TERMS
from sim.workload.streams import stream

GRAPHS = ("full", "piecewise", "none")
GPU_QUANTITIES = ("gpu_ms", "launch_ms")
HOST_QUANTITIES = ("schedule_ms", "prepare_ms", "remap_ms", "update_ms")
SWAPS = {"load_growing": "load", "load_recycled": "load", "activate": "activate"}
"""Kind of swap -> its factor in `host_scale`."""
RANGED = ("num_reqs", "num_tokens", "num_adapters", "kv_tokens", "host_cache_entries")
DRAWS = 1024
NS_PER_MS = 1e6

CHANGING = ("kv_tokens", "attention_work", "waiting")
"""Terms whose counts differ between steps that are alike otherwise."""
MOST_LASTING = 100_000
_LASTING = attrgetter(
    *("graph", "num_padded_tokens", "num_reqs", "num_tokens", "num_prefill_reqs", "num_adapters"),
    *("num_lora_tokens", "host_cache_entries", "max_loras", "max_lora_rank"),
)
"""What all other terms depend on."""


@dataclass
class Profile:
    """A loaded profile: what costs what, what the memory holds, and where a run left the measured ranges."""

    name: str
    sha256: str
    """Of the profile's settings as used, overrides included."""
    costs: CostModel
    memory: MemoryProfile = field(default_factory=MemoryProfile)
    warnings: list[str] = field(default_factory=list)

    def outside_range(self) -> list[str]:
        """Return one sentence for each measured range that the run has left so far."""
        seen = self.costs.outside_range() if isinstance(self.costs, FittedCosts) else []
        return [*self.warnings, *seen]


def load(
    settings: Mapping[str, Any],
    engine: EngineConfig,
    model: ModelConfig,
    ranks: Collection[int],
    seed: int,
) -> Profile:
    """Return the profile of a run whose adapters have `ranks`. Raises UserError for what is not one."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    kind = settings.get("kind")
    if kind == "constant":
        return Profile("constant", digest, _constant(settings))
    if kind != "fitted":
        raise UserError(f"profile.kind={kind!r}: expected constant or fitted")
    name = _text(settings, "name")
    if _text(settings, "model") != model.name:
        raise UserError(f"model.name={model.name}: profile {name} was measured with {settings['model']}")
    ranges = {
        key: _pair(value, f"profile.ranges.{key}") for key, value in _section(settings, "ranges").items()
    }
    costs = FittedCosts(settings, ranges, seed)
    memory = build(MemoryProfile, _section(settings, "memory"), "profile.memory")
    configured = {"max_loras": [engine.max_loras], "max_lora_rank": [engine.max_lora_rank]}
    configured["adapter_rank"] = list(ranks) or [engine.max_lora_rank]
    warnings = [
        text for key, values in configured.items() for text in _outside(ranges, key, min(values), max(values))
    ]
    return Profile(name, digest, costs, memory, warnings)


class FittedCosts:
    """The sums of terms that `calibrate.fit` found; loads are drawn from the measured spread around their
    mean.
    """

    def __init__(
        self, settings: Mapping[str, Any], ranges: Mapping[str, tuple[float, float]], seed: int
    ) -> None:
        steps, host, swaps, scales = (
            _section(settings, key) for key in ("steps", "host", "swaps", "host_scale")
        )
        host_scale = _cost(scales, "steps", "host_scale")
        self._gpu, self._launch = (
            {graph: _Sum(_section(steps, graph, "steps"), name, f"steps.{graph}", scale) for graph in GRAPHS}
            for name, scale in zip(GPU_QUANTITIES, (1.0, host_scale), strict=True)
        )
        self._host = [_Sum(host, name, "host", host_scale) for name in HOST_QUANTITIES]
        for total in (*self._launch.values(), *self._host):
            total.refuse("kv_tokens")
        self._swaps = {
            name: _Swap(_section(swaps, name, "swaps"), name, seed, _cost(scales, factor, "host_scale"))
            for name, factor in SWAPS.items()
        }
        self._ranges = {key: ranges[key] for key in RANGED if key in ranges}
        self._seen: dict[str, tuple[float, float]] = {}
        self._lasting: dict[tuple[str | int, ...], _Lasting] = {}

    def step(self, shape: StepShape) -> StepCost:
        """Sum up the terms; the host's rounded to ns."""
        key = _LASTING(shape)
        found = self._lasting.get(key)
        if found is None:
            found = self._lasting[key] = self._lasting_part(shape)
            self._see(shape, self._ranges)
        elif "kv_tokens" in self._ranges:
            self._see(shape, ("kv_tokens",))
        cost, changing = found
        durations = list(cost)
        for index, fs, total in changing:
            sum_fs = fs + total.changing_fs(shape)
            durations[index] = sum_fs if index == _GPU else _rounded_ns(sum_fs)
        return StepCost(*durations)

    def _lasting_part(self, shape: StepShape) -> "_Lasting":
        """Sum up the terms that stay the same in steps of many shapes."""
        if len(self._lasting) >= MOST_LASTING:
            self._lasting.clear()
        schedule, prepare, remap, update = self._host
        gpu = self._gpu[shape.graph]
        totals = (schedule, prepare, remap, self._launch[shape.graph], gpu, update)
        sums_fs = [total.lasting_fs(shape) for total in totals]
        durations = [
            fs if total is gpu else _rounded_ns(fs) for fs, total in zip(sums_fs, totals, strict=True)
        ]
        cost = StepCost(*durations)._replace(gpu_growth_fs=shape.num_reqs * gpu.of_kv_token_fs)
        parts = zip(range(len(totals)), sums_fs, totals, strict=True)
        return cost, [part for part in parts if part[2].changing]

    def _see(self, shape: StepShape, keys: Iterable[str]) -> None:
        """Take note of counts for which there is a measured range."""
        for key in keys:
            value = getattr(shape, key)
            low, high = self._seen.get(key, (value, value))
            if not low < value < high:
                self._seen[key] = min(low, value), max(high, value)

    def load_ns(self, grows: bool, rank: int) -> int:
        """Draw the duration of a load."""
        return self._swaps["load_growing" if grows else "load_recycled"].draw_ns(rank)

    def activate_ns(self, rank: int) -> int:
        """Draw the duration of an activation."""
        return self._swaps["activate"].draw_ns(rank)

    def outside_range(self) -> list[str]:
        """Return one sentence for each count that steps took outside the measured range."""
        return [text for key, seen in self._seen.items() for text in _outside(self._ranges, key, *seen)]


class _Swap:
    """Durations of one kind of swap: a mean that grows with the adapter's rank, times a drawn factor."""

    def __init__(self, settings: Mapping[str, Any], name: str, seed: int, scale: float) -> None:
        where = f"swaps.{name}"
        self._unit_ns = NS_PER_MS * scale
        self._constant_ms = _cost(settings, "constant_ms", where)
        self._rank_ms = _cost(settings, "rank_ms", where)
        spread = settings.get("spread")
        if not isinstance(spread, list) or len(spread) < 2:
            raise UserError(f"profile.{where}.spread: expected a list of at least two quantiles")
        self._spread = [_not_negative(value, f"profile.{where}.spread") for value in spread]
        self._rng = stream(seed, where)
        self._factors: list[float] = []

    def draw_ns(self, rank: int) -> int:
        if not self._factors:
            levels = np.linspace(0, 1, len(self._spread))
            self._factors = np.interp(self._rng.random(DRAWS), levels, self._spread).tolist()
        return round(self._unit_ns * (self._constant_ms + self._rank_ms * rank) * self._factors.pop())


def _constant(settings: Mapping[str, Any]) -> ConstantCosts:
    unknown = sorted(set(settings) - {"kind", "step_ms"})
    if unknown:
        raise UserError(f"unknown key profile.{unknown[0]}; accepted: kind, step_ms")
    step_ms = _finite(settings.get("step_ms"), "profile.step_ms")
    if step_ms <= 0:
        raise UserError(f"profile.step_ms={step_ms:g}: must be greater than 0")
    return ConstantCosts(step_ms)


_GPU = StepCost._fields.index("gpu_fs")
_Lasting = tuple[StepCost, list[tuple[int, int, "_Sum"]]]
"""A cost without the terms that change, and what those are to be added to: field, sum so far, sum."""


def _rounded_ns(duration_fs: int) -> int:
    return (duration_fs + FS_PER_NS // 2) // FS_PER_NS


class _Sum:
    """A quantity's terms, as whole fs, so that sums of steps are exact."""

    def __init__(self, settings: Mapping[str, Any], name: str, where: str, scale: float) -> None:
        section = _section(settings, name, where)
        self._place = f"profile.{where}.{name}"
        unknown = sorted(set(section) - set(TERMS))
        if unknown:
            raise UserError(f"unknown term {self._place}.{unknown[0]}; accepted: {', '.join(TERMS)}")
        costs_fs = {
            term: round(
                _cost(as_mapping(entry, f"{self._place}.{term}"), "value", f"{where}.{name}.{term}")
                * FS_PER_NS
                * NS_PER_MS
                * scale
            )
            for term, entry in section.items()
        }
        self._lasting = [(TERMS[term][1], fs) for term, fs in costs_fs.items() if term not in CHANGING]
        self.changing = [(TERMS[term][1], costs_fs[term]) for term in CHANGING if costs_fs.get(term)]
        """Terms that differ from step to step."""
        self.of_kv_token_fs = costs_fs.get("kv_tokens", 0)

    def lasting_fs(self, shape: StepShape) -> int:
        """Sum up the terms that many steps share."""
        total_fs = 0
        for count, fs in self._lasting:
            total_fs += fs * count(shape)
        return total_fs

    def changing_fs(self, shape: StepShape) -> int:
        """Sum up the others."""
        total_fs = 0
        for count, fs in self.changing:
            total_fs += fs * count(shape)
        return total_fs

    def refuse(self, term: str) -> None:
        """Raise UserError if `term` is among the terms."""
        if any(count is TERMS[term][1] for count, _ in self.changing):
            raise UserError(f"{self._place}.{term}: only gpu_ms may depend on it")


def _outside(ranges: Mapping[str, tuple[float, float]], key: str, low: float, high: float) -> list[str]:
    if key not in ranges:
        return []
    measured_low, measured_high = ranges[key]
    beyond = [value for value in dict.fromkeys((low, high)) if not measured_low <= value <= measured_high]
    return [
        f"{key}={value:g} is outside the measured {measured_low:g} to {measured_high:g}" for value in beyond
    ]


def _section(settings: Mapping[str, Any], key: str, where: str = "") -> Mapping[str, Any]:
    place = f"profile.{where}.{key}" if where else f"profile.{key}"
    if key not in settings:
        raise UserError(f"missing key {place}: not a complete profile; make one with python -m calibrate.fit")
    return as_mapping(settings[key], place)


def _cost(settings: Mapping[str, Any], key: str, where: str) -> float:
    return _not_negative(settings.get(key), f"profile.{where}.{key}")


def _not_negative(value: object, place: str) -> float:
    number = _finite(value, place)
    if number < 0:
        raise UserError(f"{place}={number:g}: must not be negative")
    return number


def _finite(value: object, place: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
        raise UserError(f"{place}={value!r}: expected a number")
    return float(value)


def _text(settings: Mapping[str, Any], key: str) -> str:
    value = settings.get(key)
    if not isinstance(value, str):
        raise UserError(f"profile.{key}={value!r}: expected text")
    return value


def _pair(value: Any, where: str) -> tuple[float, float]:
    if not isinstance(value, list) or len(value) != 2:
        raise UserError(f"{where}={value!r}: expected [lowest, highest]")
    return _finite(value[0], where), _finite(value[1], where)
