"""The laboratory's traffic: what its names promise happens within the time of its runs."""

from typing import Any

import pytest
from hydra import compose, initialize_config_module

from sim.config import run_values
from sim.workload import WorkloadConfig, requests


def workload(experiment: str, name: str) -> tuple[WorkloadConfig, dict[str, Any]]:
    """A workload as the experiment has it."""
    with initialize_config_module("conf", version_base="1.3"):
        config = run_values(compose("config", [f"+experiment={experiment}", f"workload={name}"]))
    return WorkloadConfig.from_mapping(config["workload"]), config


@pytest.mark.parametrize("experiment", ["lab_parts", "quick_parts"])
def test_favourites_change_while_they_drift(experiment: str) -> None:
    """The adapter asked for most in the first quarter is not that of the last one, as it is without drift."""
    favourites = {}
    for name in ("zipf", "drift"):
        config, _ = workload(experiment, name)
        assert config.duration_s is not None
        end_ns = config.duration_s * 1e9
        specs = list(requests(config, 0))
        quarters = [
            [spec.adapter for spec in specs if begin <= spec.arrival_ns / end_ns < begin + 0.25]
            for begin in (0.0, 0.75)
        ]
        favourites[name] = [max(set(names), key=names.count) for names in quarters]
    assert favourites["zipf"][0] == favourites["zipf"][1]
    assert favourites["drift"][0] != favourites["drift"][1]


@pytest.mark.parametrize("experiment", ["lab_parts", "quick_parts"])
def test_bursts_come_within_the_run(experiment: str) -> None:
    """Seconds with arrivals at several times the mean, and quiet ones."""
    config, _ = workload(experiment, "bursty")
    assert config.duration_s is not None and config.request_rate is not None
    seconds = [0] * round(config.duration_s)
    for seed in range(5):
        for spec in requests(config, seed):
            if spec.arrival_ns < config.duration_s * 1e9:
                seconds[int(spec.arrival_ns // 1e9)] += 1
        assert max(seconds) > 2 * config.request_rate > 4 * min(seconds)
        seconds = [0] * len(seconds)
