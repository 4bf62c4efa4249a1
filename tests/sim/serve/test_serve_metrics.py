"""`/metrics`: vLLM's names, types and labels, and figures that add up. In virtual time, 10 ms a step."""

import asyncio
import importlib.util
import re
from pathlib import Path

import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from sim.serve.backend import Backend
from tests.sim.serve.serving import AsgiClient, VirtualLoop, serve_config, with_client
from tests.sim.test_simulation import OPEN, config

PER_ENGINE = {"model_name", "engine"}
COUNTER, GAUGE, HISTOGRAM = "counter", "gauge", "histogram"
VLLM = {
    "vllm:num_requests_running": (GAUGE, PER_ENGINE),
    "vllm:num_requests_waiting": (GAUGE, PER_ENGINE),
    "vllm:num_requests_waiting_by_reason": (GAUGE, PER_ENGINE | {"reason"}),
    "vllm:kv_cache_usage_perc": (GAUGE, PER_ENGINE),
    "vllm:lora_requests_info": (GAUGE, {"max_lora", "waiting_lora_adapters", "running_lora_adapters"}),
    "vllm:prefix_cache_queries": (COUNTER, PER_ENGINE),
    "vllm:prefix_cache_hits": (COUNTER, PER_ENGINE),
    "vllm:num_preemptions": (COUNTER, PER_ENGINE),
    "vllm:prompt_tokens": (COUNTER, PER_ENGINE),
    "vllm:prompt_tokens_by_source": (COUNTER, PER_ENGINE | {"source"}),
    "vllm:prompt_tokens_cached": (COUNTER, PER_ENGINE),
    "vllm:generation_tokens": (COUNTER, PER_ENGINE),
    "vllm:request_success": (COUNTER, PER_ENGINE | {"finished_reason"}),
    "vllm:request_prompt_tokens": (HISTOGRAM, PER_ENGINE),
    "vllm:request_generation_tokens": (HISTOGRAM, PER_ENGINE),
    "vllm:iteration_tokens_total": (HISTOGRAM, PER_ENGINE),
    "vllm:request_max_num_generation_tokens": (HISTOGRAM, PER_ENGINE),
    "vllm:request_params_n": (HISTOGRAM, PER_ENGINE),
    "vllm:request_params_max_tokens": (HISTOGRAM, PER_ENGINE),
    "vllm:time_to_first_token_seconds": (HISTOGRAM, PER_ENGINE),
    "vllm:inter_token_latency_seconds": (HISTOGRAM, PER_ENGINE),
    "vllm:request_time_per_output_token_seconds": (HISTOGRAM, PER_ENGINE),
    "vllm:e2e_request_latency_seconds": (HISTOGRAM, PER_ENGINE),
    "vllm:request_queue_time_seconds": (HISTOGRAM, PER_ENGINE),
    "vllm:request_inference_time_seconds": (HISTOGRAM, PER_ENGINE),
    "vllm:request_prefill_time_seconds": (HISTOGRAM, PER_ENGINE),
    "vllm:request_decode_time_seconds": (HISTOGRAM, PER_ENGINE),
    "vllm:request_prefill_kv_computed_tokens": (HISTOGRAM, PER_ENGINE),
}
"""From `PrometheusStatLogger` of vLLM 0.25.1 (vllm/v1/metrics/loggers.py)."""
NOT_SIMULATED = {
    *("corrupted_requests", "engine_sleep_state", "external_prefix_cache_queries"),
    *("external_prefix_cache_hits", "mm_cache_queries", "mm_cache_hits"),
    *("kv_block_lifetime_seconds", "kv_block_idle_before_evict_seconds", "kv_block_reuse_gap_seconds"),
}
CACHE_LABELS = {"block_size", "enable_prefix_caching", "gpu_memory_utilization", "num_gpu_blocks", "engine"}
OURS = {
    "lorasim:requests_aborted": COUNTER,
    "lorasim:adapter_loads": COUNTER,
    "lorasim:adapter_activations": COUNTER,
    "lorasim:serving_lag_seconds": HISTOGRAM,
}


async def scraped(client: AsgiClient) -> dict[str, Metric]:
    answer = await client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    text = b"".join(part for _, part in answer.parts).decode()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    return {name: family for name, family in families.items() if not name.endswith("_created")}


def value(metrics: dict[str, Metric], name: str, **labels: str) -> float:
    """Of one sample, `name` as it stands in the text."""
    (found,) = (
        sample.value
        for family in metrics.values()
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )
    return found


def lora_info(metrics: dict[str, Metric]) -> dict[str, str]:
    (sample,) = metrics["vllm:lora_requests_info"].samples
    assert sample.value > 1e9
    return sample.labels


def test_names_types_and_labels_are_vllms() -> None:
    async def task(client: AsgiClient, backend: Backend, loop: VirtualLoop) -> None:
        metrics = await scraped(client)
        for family in metrics.values():
            labels = set().union(*(set(sample.labels) for sample in family.samples)) - {"le"}
            if family.name in OURS:
                assert (family.type, labels) == (OURS[family.name], PER_ENGINE)
            elif family.name == "vllm:cache_config_info":
                assert (family.type, labels) == (GAUGE, CACHE_LABELS)
            else:
                assert (family.type, labels) == VLLM[family.name]
        assert set(metrics) == {*VLLM, *OURS, "vllm:cache_config_info"}

    with_client(serve_config(), task)


@pytest.mark.vllm
def test_the_names_above_are_those_of_vllm_itself() -> None:
    spec = importlib.util.find_spec("vllm")
    assert spec is not None and spec.submodule_search_locations is not None
    source = Path(spec.submodule_search_locations[0], "v1", "metrics", "loggers.py").read_text()
    names = set(re.findall(r'name="(vllm:\w+)"', source))
    assert names == set(VLLM) | {f"vllm:{name}" for name in NOT_SIMULATED}


def test_figures_of_one_request() -> None:
    """A prompt of 20 tokens, 5 of output: 10 ms to the first and from each to the next."""

    async def task(client: AsgiClient, backend: Backend, loop: VirtualLoop) -> None:
        await client.post("/v1/completions", {"model": "adapter-0001", "prompt": [1] * 20, "max_tokens": 5})
        metrics = await scraped(client)
        for name, expected in {
            "vllm:prompt_tokens_total": 20,
            "vllm:generation_tokens_total": 5,
            "vllm:time_to_first_token_seconds_sum": 0.01,
            "vllm:inter_token_latency_seconds_sum": 0.04,
            "vllm:inter_token_latency_seconds_count": 4,
            "vllm:request_time_per_output_token_seconds_sum": 0.01,
            "vllm:e2e_request_latency_seconds_sum": 0.05,
            "vllm:request_queue_time_seconds_sum": 0,
            "vllm:request_prefill_time_seconds_sum": 0.01,
            "vllm:request_decode_time_seconds_sum": 0.04,
            "vllm:request_inference_time_seconds_sum": 0.05,
            "vllm:iteration_tokens_total_sum": 25,
            "vllm:iteration_tokens_total_count": 5,
            "vllm:request_prompt_tokens_sum": 20,
            "vllm:request_generation_tokens_sum": 5,
            "vllm:request_params_max_tokens_sum": 5,
            "lorasim:adapter_loads_total": 1,
            "lorasim:adapter_activations_total": 1,
        }.items():
            assert value(metrics, name) == pytest.approx(expected), name
        assert value(metrics, "vllm:request_success_total", finished_reason="length") == 1
        assert value(metrics, "vllm:request_success_total", finished_reason="stop") == 0
        assert value(metrics, "vllm:prompt_tokens_by_source_total", source="local_compute") == 20
        assert value(metrics, "vllm:time_to_first_token_seconds_bucket", le="0.01") == 1
        assert value(metrics, "vllm:time_to_first_token_seconds_bucket", le="0.005") == 0

    with_client(serve_config(), task)


def test_gauges_show_the_present_state() -> None:
    """One slot: adapter-0000 runs, and the requests for the others wait until it is done."""

    async def task(client: AsgiClient, backend: Backend, loop: VirtualLoop) -> None:
        names = ["adapter-0000", "adapter-0002", "adapter-0001", "adapter-0001"]
        bodies = [{"model": name, "prompt": [1] * 20, "max_tokens": 3} for name in names]
        calls = [asyncio.create_task(client.post("/v1/completions", body)) for body in bodies]
        await loop.sleep_until(5_000_000)
        metrics = await scraped(client)
        assert (value(metrics, "vllm:num_requests_running"), value(metrics, "vllm:num_requests_waiting")) == (
            1,
            3,
        )
        by_reason = "vllm:num_requests_waiting_by_reason"
        assert value(metrics, by_reason, reason="deferred") == 3
        assert value(metrics, by_reason, reason="capacity") == 0
        assert value(metrics, "vllm:kv_cache_usage_perc") > 0
        assert lora_info(metrics) == {
            "max_lora": "1",
            "running_lora_adapters": "adapter-0000",
            "waiting_lora_adapters": "adapter-0002,adapter-0001",
        }
        await asyncio.gather(*calls)
        metrics = await scraped(client)
        assert value(metrics, "vllm:num_requests_running") == value(metrics, "vllm:num_requests_waiting") == 0
        assert set(lora_info(metrics).values()) == {"1", ""}

    with_client(serve_config(config(OPEN, {"max_loras": 1, "max_lora_rank": 16})), task)


def test_each_replica_has_figures_of_its_own() -> None:
    async def task(client: AsgiClient, backend: Backend, loop: VirtualLoop) -> None:
        for _ in range(3):
            await client.post("/v1/completions", {"prompt": "a", "max_tokens": 2})
        metrics = await scraped(client)
        tokens = [value(metrics, "vllm:generation_tokens_total", engine=engine) for engine in ("0", "1")]
        assert tokens == [4, 2]

    with_client(serve_config(config(OPEN, replicas=2)), task)


def test_n_outputs_are_one_observation_of_n() -> None:
    async def task(client: AsgiClient, backend: Backend, loop: VirtualLoop) -> None:
        await client.post("/v1/completions", {"prompt": ["a", "b"], "n": 3, "max_tokens": 2})
        metrics = await scraped(client)
        assert value(metrics, "vllm:request_params_n_count") == 2
        assert value(metrics, "vllm:request_params_n_sum") == 6
        assert value(metrics, "vllm:request_max_num_generation_tokens_sum") == 4
        assert value(metrics, "vllm:request_generation_tokens_count") == 6

    with_client(serve_config(), task)
