"""Profiles: the YAML files of `conf/profile`, checked, and the cost model that a fitted one describes."""

import hashlib
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sim.config import EngineConfig, ModelConfig
from sim.costs import FS_PER_NS, GRAPHS, ConstantCosts, CostModel, Durations, StepCost, StepShape
from sim.errors import UserError
from sim.fields import as_mapping, build
from sim.memory import MemoryProfile
from sim.terms import TERMS, sums, within
from sim.workload.streams import stream

GPU_QUANTITIES = ("gpu_ms", "launch_ms")
HOST_QUANTITIES = ("schedule_ms", "prepare_ms", "remap_ms", "update_ms")
SWAPS = {"load_growing": "load", "load_recycled": "load", "activate": "activate"}
"""Kind of swap -> its factor in `host_scale`."""
RANGED = ("num_reqs", "num_tokens", "num_adapters", "kv_tokens", "host_cache_entries")
DRAWS = 1024
NS_PER_MS = 1e6
UNITS_FS = (FS_PER_NS, FS_PER_NS, FS_PER_NS, FS_PER_NS, 1, FS_PER_NS, 1)
"""Of what `StepCost` has, in its order: ns, and fs for the GPU."""
ONLY_GPU = "only gpu_ms may depend on the context"


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
        of_host = [_fs_per_unit(host, name, "host", host_scale) for name in HOST_QUANTITIES]
        schedule, prepare, remap, update = of_host
        self.coefficients: dict[str, Durations] = {}
        """For each graph mode. With each step the context of each request grows by one, so that the GPU's
        growth is a sum of terms too."""
        self._costs: dict[str, Callable[[StepShape], tuple[int, ...]]] = {}
        """What `StepCost` has."""
        for graph in GRAPHS:
            section, where = _section(steps, graph, "steps"), f"steps.{graph}"
            scaled = zip(GPU_QUANTITIES, (1.0, host_scale), strict=True)
            gpu, launch = (_fs_per_unit(section, name, where, scale) for name, scale in scaled)
            if "kv_tokens" in launch:
                raise UserError(f"profile.{where}.launch_ms.kv_tokens: {ONLY_GPU}")
            growth = {"reqs": gpu.get("kv_tokens", 0)}
            self.coefficients[graph] = schedule, prepare, remap, launch, gpu, update, growth
            self._costs[graph] = sums(self.coefficients[graph], UNITS_FS)
        for name, terms in zip(HOST_QUANTITIES, of_host, strict=True):
            if "kv_tokens" in terms:
                raise UserError(f"profile.host.{name}.kv_tokens: {ONLY_GPU}")
        self._refuse_steps_without_time()
        self._swaps = {
            name: _Swap(_section(swaps, name, "swaps"), name, seed, _cost(scales, factor, "host_scale"))
            for name, factor in SWAPS.items()
        }
        self.activate_ns = self._swaps["activate"].draw_ns
        """Draw the duration of an activation, given the rank. (Several a step: no function between.)"""
        copy = _section(swaps, "copy", "swaps") if "copy" in swaps else {"rank_ms": 0}
        self._copy_rank_ns = _cost(copy, "rank_ms", "swaps.copy") * NS_PER_MS
        self._ranges = {key: ranges[key] for key in RANGED if key in ranges}
        self._is_measured = within(self._ranges)
        self._expected = dict(self._ranges)
        """The measured ranges, widened by what steps took outside of them."""

    def step(self, shape: StepShape) -> StepCost:
        """Sum up the terms; the host's rounded to ns."""
        if not self._is_measured(shape):
            self._note_outside(shape)
        # For every step: at half the price of the class's own `__new__`.
        return tuple.__new__(StepCost, self._costs[shape.graph](shape))

    def _refuse_steps_without_time(self) -> None:
        """A request that comes as soon as one is complete would let a run stand still for ever."""
        for graph in GRAPHS:
            least = StepShape(graph, 1, 1, 1, 0, 0, 0, 1, 0, 0, 0, 0, 1, 1)
            cost = StepCost(*self._costs[graph](least))
            if not (cost.schedule_ns + cost.prepare_ns + cost.launch_ns + cost.gpu_fs + cost.update_ns):
                raise UserError(f"profile.steps.{graph}: a step of one request takes no time; expected some")

    def _note_outside(self, shape: StepShape) -> None:
        self.note_seen({key: (getattr(shape, key),) * 2 for key in self._expected})

    def note_seen(self, seen: Mapping[str, tuple[int, int]]) -> None:
        """Take note of the least and the most of each count of steps."""
        for key, (low, high) in self._expected.items():
            least, most = seen[key]
            self._expected[key] = min(low, least), max(high, most)

    def load_ns(self, grows: bool, rank: int) -> int:
        """Draw the duration of a load."""
        return self._swaps["load_growing" if grows else "load_recycled"].draw_ns(rank)

    def copy_ns(self, rank: int) -> int:
        """Duration of the copy of an adapter to its slot."""
        return round(self._copy_rank_ns * rank)

    def mean_load_ns(self, grows: bool, rank: int) -> int:
        """Mean duration of a load."""
        return self._swaps["load_growing" if grows else "load_recycled"].mean_ns(rank)

    def mean_activate_ns(self, rank: int) -> int:
        """Mean duration of an activation."""
        return self._swaps["activate"].mean_ns(rank)

    def outside_range(self) -> list[str]:
        """Return one sentence for each count that steps took outside the measured range."""
        return [text for key, seen in self._expected.items() for text in _outside(self._ranges, key, *seen)]


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
        self._mean_factor = float(np.mean(np.convolve(self._spread, (0.5, 0.5), "valid")))
        self._rng = stream(seed, where)
        self._factors: list[float] = []
        self._of_rank: dict[int, float] = {}
        """Duration of a swap whose factor is 1, in ns."""

    def mean_ns(self, rank: int) -> int:
        """The mean, with the spread's own."""
        return round(self._unit_ns * (self._constant_ms + self._rank_ms * rank) * self._mean_factor)

    def draw_ns(self, rank: int) -> int:
        """One of them."""
        if not self._factors:
            levels = np.linspace(0, 1, len(self._spread))
            self._factors = np.interp(self._rng.random(DRAWS), levels, self._spread).tolist()
        unit_ns = self._of_rank.get(rank)
        if unit_ns is None:
            unit_ns = self._of_rank[rank] = self._unit_ns * (self._constant_ms + self._rank_ms * rank)
        return round(unit_ns * self._factors.pop())


def _constant(settings: Mapping[str, Any]) -> ConstantCosts:
    unknown = sorted(set(settings) - {"kind", "step_ms"})
    if unknown:
        raise UserError(f"unknown key profile.{unknown[0]}; accepted: kind, step_ms")
    step_ms = _finite(settings.get("step_ms"), "profile.step_ms")
    if step_ms <= 0:
        raise UserError(f"profile.step_ms={step_ms:g}: must be greater than 0")
    if step_ms * NS_PER_MS < 1:
        raise UserError(f"profile.step_ms={step_ms:g}: must be at least {1 / NS_PER_MS:g}, which is 1 ns")
    return ConstantCosts(step_ms)


def _fs_per_unit(settings: Mapping[str, Any], name: str, where: str, scale: float) -> dict[str, int]:
    """Return the coefficients of a quantity's terms."""
    section = _section(settings, name, where)
    unknown = sorted(set(section) - set(TERMS))
    if unknown:
        raise UserError(f"unknown term profile.{where}.{name}.{unknown[0]}; accepted: {', '.join(TERMS)}")
    coefficients = {}
    for term, entry in section.items():
        place = f"{where}.{name}.{term}"
        value_ms = _cost(as_mapping(entry, f"profile.{place}"), "value", place)
        coefficients[term] = round(value_ms * scale * NS_PER_MS * FS_PER_NS)
    return coefficients


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
