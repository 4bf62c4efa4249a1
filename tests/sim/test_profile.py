"""A fitted profile's costs by hand, its draws and warnings, and what is refused."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from sim import profile
from sim.config import EngineConfig, ModelConfig
from sim.costs import FS_PER_NS, StepCost
from sim.errors import UserError
from sim.fields import build
from sim.profile import FittedCosts, Profile
from sim.simulation import simulate
from tests.sim.test_config import LLAMA
from tests.sim.test_simulation import OPEN, config
from tests.sim.test_terms import MIXED


def terms(**values: float) -> dict[str, Any]:
    return {name: {"value": value, "ci95": [value, value], "unit": "ms"} for name, value in values.items()}


LAUNCH = terms(constant=5, lora=0.5)
SETTINGS: dict[str, Any] = {
    "kind": "fitted",
    "schema_version": 1,
    "name": "mine",
    "model": LLAMA["name"],
    "steps": {
        "full": {"gpu_ms": terms(constant=6, kv_tokens=0.001), "launch_ms": terms(constant=1)},
        "piecewise": {"gpu_ms": terms(constant=8, padded_tokens=0.01), "launch_ms": LAUNCH},
        "none": {"gpu_ms": terms(adapters=2), "launch_ms": {}},
    },
    "host": {
        "schedule_ms": terms(constant=0.1, waiting=0.01),
        "prepare_ms": terms(reqs=0.1),
        "remap_ms": terms(constant=1.5),
        "update_ms": terms(constant=0.25),
    },
    "swaps": {
        "load_growing": {"constant_ms": 10, "rank_ms": 2, "spread": [0.5, 1.0, 1.5]},
        "load_recycled": {"constant_ms": 5, "rank_ms": 1, "spread": [0.8, 1.2]},
        "activate": {"constant_ms": 4, "rank_ms": 0, "spread": [1, 1]},
    },
    "host_scale": {"steps": 1, "load": 1, "activate": 1},
    "memory": {"gpu_memory_bytes": 85_000_000_000, "non_kv_overhead_bytes": 10, "host_memory_bytes": 10**12},
    "ranges": {
        "max_loras": [8, 64],
        "max_lora_rank": [16, 64],
        "adapter_rank": [16, 64],
        "num_reqs": [1, 256],
        "num_tokens": [1, 8192],
        "num_adapters": [0, 64],
        "kv_tokens": [0, 100_000],
        "host_cache_entries": [0, 1000],
    },
}


def changed(key: str, *value: Any, base: dict[str, Any] = SETTINGS) -> dict[str, Any]:
    """`base` with `key` set to a value, or without it."""
    settings = deepcopy(base)
    *path, last = key.split(".")
    section = settings
    for name in path:
        section = section[name]
    section.pop(last, None)
    section.update((last, item) for item in value)
    return settings


def load(settings: dict[str, Any] = SETTINGS, rank: int = 16, seed: int = 0, **engine: int) -> Profile:
    return profile.load(settings, EngineConfig(**engine), build(ModelConfig, LLAMA, "model"), [rank], seed)  # type: ignore[arg-type]


def costs(seed: int = 0) -> FittedCosts:
    found = load(seed=seed).costs
    assert isinstance(found, FittedCosts)
    return found


def test_cost_of_a_step_by_hand() -> None:
    """136 padded tokens, 9 requests, 5 waiting, 3 adapters."""
    host = {"schedule_ns": 150_000, "prepare_ns": 900_000, "remap_ns": 1_500_000, "update_ns": 250_000}
    expected = StepCost(**host, launch_ns=5_500_000, gpu_fs=9_360_000 * FS_PER_NS)
    assert costs().step(MIXED) == expected
    # 1,024 tokens of context; launches without a term cost nothing.
    full, bare = replace(MIXED, graph="full"), replace(MIXED, graph="none")
    assert costs().step(full) == StepCost(
        **host, launch_ns=1_000_000, gpu_fs=7_024_000 * FS_PER_NS, gpu_growth_fs=9_000 * FS_PER_NS
    )
    assert costs().step(bare) == StepCost(**host, launch_ns=0, gpu_fs=6_000_000 * FS_PER_NS)


@pytest.mark.parametrize("rank", [16, 64])
def test_draws_have_the_mean_and_the_spread_of_the_profile(rank: int) -> None:
    found = costs()
    for grows, mean_ms, width in ((True, 10 + 2 * rank, 0.5), (False, 5 + rank, 0.2)):
        draws_ms = np.array([found.load_ns(grows, rank) for _ in range(5000)]) / 1e6
        assert draws_ms.mean() == pytest.approx(mean_ms, rel=0.02)
        assert draws_ms.min() == pytest.approx((1 - width) * mean_ms, rel=0.01)
        assert draws_ms.max() == pytest.approx((1 + width) * mean_ms, rel=0.01)
    assert {found.activate_ns(rank) for _ in range(10)} == {4_000_000}


def test_host_terms_are_scaled_and_the_gpus_are_not() -> None:
    settings = changed("host_scale", {"steps": 2, "load": 3, "activate": 0.5})
    found, usual = load(settings).costs, costs()
    slow, fast = found.step(MIXED), usual.step(MIXED)
    assert slow == StepCost(*(2 * time for time in fast))._replace(gpu_fs=fast.gpu_fs)
    assert found.load_ns(True, 16) == pytest.approx(3 * usual.load_ns(True, 16), abs=2)
    assert found.load_ns(False, 16) == pytest.approx(3 * usual.load_ns(False, 16), abs=2)
    assert found.activate_ns(16) == usual.activate_ns(16) / 2


def test_the_same_seed_gives_the_same_draws() -> None:
    first, second, other = (
        [costs_.load_ns(True, 16) for _ in range(2000)] for costs_ in map(seeded, (1, 1, 2))
    )
    assert first == second != other


def test_one_kind_of_swap_does_not_move_another() -> None:
    first, second = seeded(1), seeded(1)
    alone = [first.load_ns(False, 16) for _ in range(50)]
    between = []
    for _ in range(50):
        second.load_ns(True, 16)
        second.activate_ns(16)
        between.append(second.load_ns(False, 16))
    assert alone == between


def seeded(seed: int) -> FittedCosts:
    return costs(seed=seed)


def test_what_is_within_the_measured_ranges_warns_of_nothing() -> None:
    found = load()
    found.costs.step(MIXED)
    assert found.outside_range() == []


def test_settings_outside_the_measured_ranges_warn() -> None:
    assert load(rank=8, max_loras=4, max_lora_rank=128).outside_range() == [
        "max_loras=4 is outside the measured 8 to 64",
        "max_lora_rank=128 is outside the measured 16 to 64",
        "adapter_rank=8 is outside the measured 16 to 64",
    ]


def test_steps_outside_the_measured_ranges_warn_with_the_furthest() -> None:
    found = load()
    for kv_tokens, num_reqs in ((90_000, 0), (100_001, 5), (200_000, 5), (150_000, 300)):
        found.costs.step(replace(MIXED, kv_tokens=kv_tokens, num_reqs=num_reqs))
    assert found.outside_range() == [
        "num_reqs=0 is outside the measured 1 to 256",
        "num_reqs=300 is outside the measured 1 to 256",
        "kv_tokens=200000 is outside the measured 0 to 100000",
    ]


def test_a_range_that_was_not_measured_does_not_warn() -> None:
    assert load(changed("ranges", {}), rank=8, max_loras=4).outside_range() == []


def test_what_is_not_a_cost_is_kept() -> None:
    found = load()
    assert found.name == "mine"
    assert found.memory.gpu_memory_bytes == 85_000_000_000
    assert found.memory.num_gpu_blocks is None


@pytest.mark.parametrize(
    ("key", "value"),
    [("steps.full.gpu_ms.constant.value", 6.5), ("memory.host_memory_bytes", 10**11), ("name", "other")],
)
def test_an_override_changes_the_digest(key: str, value: Any) -> None:
    assert load(changed(key, value)).sha256 != load().sha256
    assert load(deepcopy(SETTINGS)).sha256 == load().sha256


def test_copies_take_the_gpu_in_proportion_to_the_rank_where_the_profile_has_them() -> None:
    settings = changed("swaps.copy", {"rank_ms": 0.1})
    assert load(settings).costs.copy_ns(16) == 1_600_000
    assert load().costs.copy_ns(16) == 0


def test_a_run_says_what_profile_it_used_and_where_it_left_it() -> None:
    settings = changed("model", "tiny")
    summary = simulate(config(OPEN, {"max_lora_rank": 16}, profile=settings)).summary["profile"]
    assert summary["name"] == "mine"
    assert len(summary["sha256"]) == 64
    assert summary["outside_range"] == ["max_loras=4 is outside the measured 8 to 64"]


# The malformed settings, and how the line begins.
MALFORMED: dict[str, tuple[dict[str, Any], str]] = {
    "no kind": (changed("kind"), "profile.kind=None: expected constant or fitted"),
    "no name": (changed("name"), "profile.name=None: expected text"),
    "no model": (changed("model"), "profile.model=None: expected text"),
    "another model": (changed("model", "Qwen"), f"model.name={LLAMA['name']}: profile"),
    "a section is a number": (changed("steps", 3), "profile.steps=3: expected a mapping"),
    "a graph is a list": (changed("steps.full", []), "profile.steps.full=[]: expected a mapping"),
    "a quantity is empty": (changed("host.remap_ms", None), "profile.host.remap_ms=None: expected a mapping"),
    "unknown term": (
        changed("steps.none.gpu_ms.nonsense", {"value": 1}),
        "unknown term profile.steps.none.gpu_ms.nonsense; accepted: constant, ",
    ),
    "a term without a value": (
        changed("host.update_ms.constant.value"),
        "profile.host.update_ms.constant.value=None: expected a number",
    ),
    "a term is a number": (
        changed("host.update_ms.constant", 3),
        "profile.host.update_ms.constant=3: expected a mapping",
    ),
    "a word for a number": (
        changed("steps.full.gpu_ms.constant.value", "fast"),
        "profile.steps.full.gpu_ms.constant.value='fast': expected a number",
    ),
    "true for a number": (
        changed("steps.full.gpu_ms.constant.value", True),
        "profile.steps.full.gpu_ms.constant.value=True: expected a number",
    ),
    "not a number": (
        changed("steps.full.launch_ms.constant.value", float("nan")),
        "profile.steps.full.launch_ms.constant.value=nan: expected a number",
    ),
    "infinite": (
        changed("swaps.load_growing.rank_ms", float("inf")),
        "profile.swaps.load_growing.rank_ms=inf: expected a number",
    ),
    "negative": (
        changed("host.schedule_ms.waiting.value", -0.5),
        "profile.host.schedule_ms.waiting.value=-0.5: must not be negative",
    ),
    "a negative swap": (
        changed("swaps.activate.constant_ms", -1),
        "profile.swaps.activate.constant_ms=-1: must not be negative",
    ),
    "a negative scale": (
        changed("host_scale.load", -1),
        "profile.host_scale.load=-1: must not be negative",
    ),
    "a missing scale": (
        changed("host_scale.steps"),
        "profile.host_scale.steps=None: expected a number",
    ),
    "a swap without a mean": (
        changed("swaps.activate.constant_ms"),
        "profile.swaps.activate.constant_ms=None: expected a number",
    ),
    "a copy that takes negative time": (
        changed("swaps.copy", {"rank_ms": -1}),
        "profile.swaps.copy.rank_ms=-1: must not be negative",
    ),
    "a spread of one": (changed("swaps.activate.spread", [1]), "profile.swaps.activate.spread: "),
    "a spread of words": (
        changed("swaps.activate.spread", [1, "wide"]),
        "profile.swaps.activate.spread='wide': expected a number",
    ),
    "a range of one": (changed("ranges.num_reqs", [1]), "profile.ranges.num_reqs=[1]: expected [low"),
    "a range of words": (changed("ranges.num_reqs", [1, "all"]), "profile.ranges.num_reqs='all': expected"),
    "a range with NaN": (
        changed("ranges.num_reqs", [float("nan"), 1]),
        "profile.ranges.num_reqs=nan: expected a number",
    ),
    "memory in words": (
        changed("memory.host_memory_bytes", "much"),
        "profile.memory.host_memory_bytes='much'",
    ),
    "unknown memory": (changed("memory.nonsense", 1), "unknown key profile.memory.nonsense; "),
}
SECTIONS = (
    "steps",
    "host",
    "swaps",
    "host_scale",
    "memory",
    "ranges",
    *(f"steps.{graph}" for graph in profile.GRAPHS),
    *(f"steps.{graph}.{name}" for graph in profile.GRAPHS for name in profile.GPU_QUANTITIES),
    *(f"host.{name}" for name in profile.HOST_QUANTITIES),
    *(f"swaps.{name}" for name in profile.SWAPS),
)


def refusal(action: Callable[[], Any]) -> str:
    with pytest.raises(UserError) as raised:
        action()
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize(("settings", "message"), MALFORMED.values(), ids=MALFORMED)
def test_malformed(settings: dict[str, Any], message: str) -> None:
    assert refusal(lambda: load(settings)).startswith(message)


@pytest.mark.parametrize("section", SECTIONS)
def test_a_missing_section_is_named(section: str) -> None:
    message = refusal(lambda: load(changed(section)))
    assert message.startswith(f"missing key profile.{section}: not a complete profile; make one with")


def test_steps_that_take_no_time_are_refused() -> None:
    """A closed loop would go on for ever at one instant."""
    nothing = {"gpu_ms": {}, "launch_ms": terms(constant=1)}
    settings = changed("steps.piecewise", nothing)
    settings["host_scale"] = {"steps": 0, "load": 1, "activate": 1}
    with pytest.raises(UserError, match=r"^profile\.steps\.piecewise: a step of one request takes no time"):
        load(settings)
