"""Which policies are vLLM's own: of the files in `conf/`, and of what stands in a run's configuration."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_module
from hydra.utils import instantiate
from omegaconf import OmegaConf

from policies.admission import FcfsSkip, Priority
from policies.eviction import Lru
from policies.prefetch import NoPrefetch
from sim.config import RunConfig, run_values
from sim.policy.bridged import bridged_policies
from sim.policy.vllms_own import CLASSES, LRU, NO_PREFETCH, VLLM_QUEUE, foreign_policies

ARC = {"_target_": "policies.eviction.Arc"}
QUEUE_AWARE = {"_target_": "policies.eviction.QueueAware"}


def names(group: str) -> list[str]:
    return sorted(path.stem for path in Path("conf", group).glob("*.yaml"))


def values(*words: str) -> dict[str, Any]:
    with initialize_config_module("conf", version_base="1.3"):
        return run_values(compose("config", list(words)))


@pytest.mark.parametrize(
    ("group", "scheduling_policy", "own"),
    [
        ("admission", "fcfs", {"vllm", "fcfs_skip"}),
        ("admission", "priority", {"vllm", "priority"}),
        ("eviction", "fcfs", {"lru"}),
        ("prefetch", "fcfs", {"none"}),
    ],
)
def test_the_files_of_conf(group: str, scheduling_policy: str, own: set[str]) -> None:
    engine = f"engine.scheduling_policy={scheduling_policy}"
    found = {name for name in names(group) if not foreign_policies(values(f"{group}={name}", engine))}
    assert found == own


def test_the_sections_make_the_classes() -> None:
    made = {}
    for scheduling_policy in ("fcfs", "priority"):
        engine = {"scheduling_policy": scheduling_policy}
        settings = OmegaConf.create({"engine": engine, "queue": dict(VLLM_QUEUE)})
        made[scheduling_policy] = type(instantiate(settings.queue))
    assert made == {"fcfs": FcfsSkip, "priority": Priority}
    assert isinstance(instantiate(LRU), Lru)
    assert isinstance(instantiate(NO_PREFETCH), NoPrefetch)
    assert set(CLASSES) == {FcfsSkip, Priority, Lru}


@pytest.mark.parametrize(
    ("config", "foreign"),
    [
        ({}, set()),
        ({"admission": {}, "host_eviction": None, "prefetch": {}}, set()),
        ({"eviction": LRU, "host_eviction": {**LRU, "protect_batch": False}}, set()),
        ({"eviction": {**LRU, "protect_batch": True}}, {"eviction"}),
        ({"eviction": LRU, "host_eviction": ARC}, {"host_eviction"}),
        ({"eviction": ARC, "host_eviction": None}, {"eviction"}),
        # Left out, the host cache's would be Arc too.
        ({"eviction": ARC, "host_eviction": LRU}, {"eviction", "host_eviction"}),
        ({"eviction": ARC, "host_eviction": QUEUE_AWARE}, {"eviction", "host_eviction"}),
        ({"admission": {**VLLM_QUEUE, "scheduling_policy": "priority"}}, {"admission"}),
        ({"admission": {"_target_": "my_policies.FcfsSkip"}}, {"admission"}),
    ],
)
def test_sections(config: dict[str, Any], foreign: set[str]) -> None:
    found = foreign_policies(config)
    assert set(found) == foreign
    assert all(section == config[group] for group, section in found.items())


def test_priority_over_an_engine_that_is_not_told_so_is_written_for_vllm() -> None:
    """`vllm serve` without --scheduling-policy would serve in order of arrival."""
    config = RunConfig.from_mapping(values("admission=priority"))
    priority = yaml.safe_load(Path("conf/admission/priority.yaml").read_text())
    assert bridged_policies(config) == {"admission": priority, "profile": "h100_llama_3_1_8b"}
    told = RunConfig.from_mapping(values("admission=priority", "engine.scheduling_policy=priority"))
    assert bridged_policies(told) is None
