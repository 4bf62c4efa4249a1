"""The metrics that there are: vLLM's by name, labels and buckets (vllm/v1/metrics/loggers.py), and our own.

Times are simulated seconds. What the engine does not simulate, or does not tell, is not there.
"""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from sim.config import EngineConfig

PER_ENGINE = ("model_name", "engine")
FINISHED_REASONS = ("stop", "length", "abort", "error", "repetition")
PROMPT_SOURCES = ("local_compute", "local_cache_hit", "external_kv_transfer")

COUNTERS = {
    "vllm:prompt_tokens": "Number of prefill tokens processed.",
    "vllm:prompt_tokens_cached": "Number of cached prompt tokens (local + external).",
    "vllm:generation_tokens": "Number of generation tokens processed.",
    "vllm:num_preemptions": "Cumulative number of preemption from the engine.",
    "vllm:prefix_cache_queries": "Prefix cache queries, in terms of number of queried tokens.",
    "vllm:prefix_cache_hits": "Prefix cache hits, in terms of number of cached tokens.",
    "lorasim:requests_aborted": "Requests that were aborted: clients that went away, time-outs, shutdown.",
    "lorasim:adapter_loads": "Adapters loaded from disk to the host cache.",
    "lorasim:adapter_activations": "Adapters copied from the host cache to a GPU slot.",
}
LABELLED_COUNTERS = {
    "vllm:request_success": (
        "Count of successfully processed requests.",
        "finished_reason",
        FINISHED_REASONS,
    ),
    "vllm:prompt_tokens_by_source": ("Number of prompt tokens by source.", "source", PROMPT_SOURCES),
}
CAPACITY, DEFERRED = "capacity", "deferred"
WAITING_BY_REASON = (
    "vllm:num_requests_waiting_by_reason",
    "Number of waiting requests by reason: 'capacity', a place in the batch; 'deferred', the LoRA budget.",
)
GAUGES = {
    "vllm:num_requests_running": "Number of requests in model execution batches.",
    "vllm:num_requests_waiting": "Number of requests waiting to be processed.",
    "vllm:kv_cache_usage_perc": "KV-cache usage. 1 means 100 percent usage.",
}

_TTFT_S = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
_TOKEN_GAP_S = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
_LATENCY_S = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
_LAG_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_STEP_TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
HISTOGRAMS = {
    "vllm:time_to_first_token_seconds": ("Histogram of time to first token in seconds.", _TTFT_S),
    "vllm:inter_token_latency_seconds": ("Histogram of inter-token latency in seconds.", _TOKEN_GAP_S),
    "vllm:request_time_per_output_token_seconds": (
        "Histogram of time_per_output_token_seconds per request.",
        _TOKEN_GAP_S,
    ),
    "vllm:e2e_request_latency_seconds": ("Histogram of e2e request latency in seconds.", _LATENCY_S),
    "vllm:request_queue_time_seconds": (
        "Histogram of time spent in WAITING phase for request.",
        _LATENCY_S,
    ),
    "vllm:request_prefill_time_seconds": (
        "Histogram of time spent in PREFILL phase for request.",
        _LATENCY_S,
    ),
    "vllm:request_decode_time_seconds": (
        "Histogram of time spent in DECODE phase for request.",
        _LATENCY_S,
    ),
    "vllm:request_inference_time_seconds": (
        "Histogram of time spent in RUNNING phase for request.",
        _LATENCY_S,
    ),
    "vllm:iteration_tokens_total": ("Histogram of number of tokens per engine_step.", _STEP_TOKENS),
    "vllm:request_params_n": ("Histogram of the n request parameter.", (1, 2, 5, 10, 20)),
    "lorasim:serving_lag_seconds": (
        "Wall time from the instant of a token in the simulation until it is sent.",
        _LAG_S,
    ),
}
LENGTH_HISTOGRAMS = {
    "vllm:request_prompt_tokens": "Number of prefill tokens processed.",
    "vllm:request_generation_tokens": "Number of generation tokens processed.",
    "vllm:request_max_num_generation_tokens": "Histogram of maximum number of requested generation tokens.",
    "vllm:request_params_max_tokens": "Histogram of the max_tokens request parameter.",
    "vllm:request_prefill_kv_computed_tokens": (
        "Histogram of new KV tokens computed during prefill (excluding cached tokens)."
    ),
}
"""Their buckets go up to `max_model_len`."""


class Instruments:
    """Every metric once, by name, in a registry of their own."""

    def __init__(self, max_model_len: int) -> None:
        registry = self.registry = CollectorRegistry()
        lengths = one_two_five_buckets(max_model_len)
        histograms = HISTOGRAMS | {name: (text, lengths) for name, text in LENGTH_HISTOGRAMS.items()}
        self.histograms = {
            name: Histogram(name, text, PER_ENGINE, buckets=buckets, registry=registry)
            for name, (text, buckets) in histograms.items()
        }
        self.counters = {
            name: Counter(name, text, PER_ENGINE, registry=registry) for name, text in COUNTERS.items()
        }
        self.labelled_counters = {
            name: Counter(name, text, [*PER_ENGINE, label], registry=registry)
            for name, (text, label, _) in LABELLED_COUNTERS.items()
        }
        self.gauges = {
            name: Gauge(name, text, PER_ENGINE, registry=registry) for name, text in GAUGES.items()
        }
        self.waiting_by_reason = Gauge(*WAITING_BY_REASON, [*PER_ENGINE, "reason"], registry=registry)
        self.lora_requests_info = Gauge(
            "vllm:lora_requests_info",
            "Running stats on lora requests.",
            ["max_lora", "waiting_lora_adapters", "running_lora_adapters"],
            registry=registry,
        )
        self.cache_config_info = Gauge(
            "vllm:cache_config_info",
            "Information of the LLMEngine CacheConfig",
            ["block_size", "enable_prefix_caching", "gpu_memory_utilization", "num_gpu_blocks", "engine"],
            registry=registry,
        )

    def describe_cache(self, engine: EngineConfig, num_gpu_blocks: int, number: int) -> None:
        """Set `vllm:cache_config_info` of an engine, with the labels that are settings here too."""
        self.cache_config_info.labels(
            block_size=str(engine.block_size),
            enable_prefix_caching=str(engine.enable_prefix_caching),
            gpu_memory_utilization=str(engine.gpu_memory_utilization),
            num_gpu_blocks=str(num_gpu_blocks),
            engine=str(number),
        ).set(1)


def one_two_five_buckets(largest: int) -> list[int]:
    """Return 1, 2, 5, 10, 20, 50, ... up to ``largest`` (`build_1_2_5_buckets`)."""
    powers = (10**exponent for exponent in range(len(str(largest))))
    return [bucket for power in powers for bucket in (power, 2 * power, 5 * power) if bucket <= largest]
