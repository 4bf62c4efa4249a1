"""What is counted when: the figures of ``/metrics``, by engine."""

from collections.abc import Collection, Sequence

from sim.adapters import AdapterEvent
from sim.metrics import NS_PER_S
from sim.request import RequestStatus
from sim.router import ReplicaState
from sim.serve.instruments import CAPACITY, DEFERRED, LABELLED_COUNTERS, Instruments
from sim.serve.outputs import Output


class ReplicaMetrics:
    """The figures of one engine; all are there from the start, at 0."""

    def __init__(self, instruments: Instruments, model_name: str, engine: int) -> None:
        labels = (model_name, str(engine))
        self._counters = {name: metric.labels(*labels) for name, metric in instruments.counters.items()}
        self._gauges = {name: metric.labels(*labels) for name, metric in instruments.gauges.items()}
        self._histograms = {name: metric.labels(*labels) for name, metric in instruments.histograms.items()}
        reasons = instruments.waiting_by_reason
        self._waiting = {reason: reasons.labels(*labels, reason) for reason in (CAPACITY, DEFERRED)}
        self._labelled = {
            (name, value): instruments.labelled_counters[name].labels(*labels, value)
            for name, (_, _, values) in LABELLED_COUNTERS.items()
            for value in values
        }

    def show_state(self, state: ReplicaState, kv_cache_usage: float) -> None:
        """Set the gauges to the present state."""
        self._gauges["vllm:num_requests_running"].set(state.num_running)
        self._gauges["vllm:num_requests_waiting"].set(state.num_waiting)
        self._waiting[CAPACITY].set(state.num_waiting - state.num_deferred)
        self._waiting[DEFERRED].set(state.num_deferred)
        self._gauges["vllm:kv_cache_usage_perc"].set(kv_cache_usage)

    def count_swaps(self, events: Sequence[AdapterEvent]) -> None:
        """Count what a step did to adapters."""
        for event in events:
            if event.kind == "load":
                self._counters["lorasim:adapter_loads"].inc()
            elif event.kind == "activate":
                self._counters["lorasim:adapter_activations"].inc()

    def count_admission(self, output: Output) -> None:
        """Count what a request that starts found in the prefix cache."""
        self._counters["vllm:prefix_cache_queries"].inc(output.request.num_prompt_tokens)
        self._counters["vllm:prefix_cache_hits"].inc(output.num_cached_tokens)

    def count_preemption(self) -> None:
        """Count a preemption."""
        self._counters["vllm:num_preemptions"].inc()

    def count_step(self, num_computed_tokens: int, num_generation_tokens: int) -> None:
        """Count the tokens that a step yields, and those of the prompts that are done with it."""
        self._counters["vllm:generation_tokens"].inc(num_generation_tokens)
        self._histograms["vllm:iteration_tokens_total"].observe(num_computed_tokens + num_generation_tokens)

    def observe_first_token(self, output: Output, now_ns: int) -> None:
        """Observe a request's first token, with which its prompt is done."""
        num_prompt_tokens, num_cached = output.request.num_prompt_tokens, output.num_cached_tokens
        self._counters["vllm:prompt_tokens"].inc(num_prompt_tokens)
        self._counters["vllm:prompt_tokens_cached"].inc(num_cached)
        by_source = "vllm:prompt_tokens_by_source"
        self._labelled[by_source, "local_compute"].inc(num_prompt_tokens - num_cached)
        self._labelled[by_source, "local_cache_hit"].inc(num_cached)
        self._observe_ns("time_to_first_token", now_ns - output.request.arrival_ns)

    def observe_gap(self, gap_ns: int) -> None:
        """Observe the time from one token of a request to the next."""
        self._observe_ns("inter_token_latency", gap_ns)

    def observe_lag(self, lag_s: float) -> None:
        """Observe how long after its instant a token is sent."""
        self._histograms["lorasim:serving_lag_seconds"].observe(lag_s)

    def observe_finish(self, output: Output) -> None:
        """Observe a request that is complete."""
        request, first_ns, last_ns = output.request, output.first_token_ns, output.last_token_ns
        assert request.scheduled_ns is not None and first_ns is not None and last_ns is not None
        self._labelled["vllm:request_success", str(output.finish_reason)].inc()
        self._observe_ns("e2e_request_latency", last_ns - request.arrival_ns)
        self._observe_ns("request_queue_time", request.scheduled_ns - request.arrival_ns)
        self._observe_ns("request_prefill_time", first_ns - request.scheduled_ns)
        self._observe_ns("request_decode_time", last_ns - first_ns)
        self._observe_ns("request_inference_time", last_ns - request.scheduled_ns)
        gaps = output.num_tokens - 1
        self._observe_ns("request_time_per_output_token", (last_ns - first_ns) / gaps if gaps else 0)
        self._observe_lengths(output)

    def _observe_lengths(self, output: Output) -> None:
        histograms, family = self._histograms, output.family
        num_prompt_tokens = output.request.num_prompt_tokens
        num_computed = num_prompt_tokens - output.num_cached_tokens
        histograms["vllm:request_prompt_tokens"].observe(num_prompt_tokens)
        histograms["vllm:request_prefill_kv_computed_tokens"].observe(num_computed)
        histograms["vllm:request_generation_tokens"].observe(output.num_tokens)
        histograms["vllm:request_params_max_tokens"].observe(output.request.max_tokens)
        if family.is_complete:
            histograms["vllm:request_params_n"].observe(family.n)
            histograms["vllm:request_max_num_generation_tokens"].observe(family.most_tokens)

    def count_abort(self) -> None:
        """Count a request that was aborted; vLLM's own metrics leave those out."""
        self._counters["lorasim:requests_aborted"].inc()

    def _observe_ns(self, name: str, time_ns: float) -> None:
        self._histograms[f"vllm:{name}_seconds"].observe(time_ns / NS_PER_S)


def show_lora_requests(instruments: Instruments, outputs: Collection[Output], max_loras: int) -> None:
    """Set `vllm:lora_requests_info`: the adapters of the requests in flight, running and waiting.

    vLLM keeps the label sets of earlier moments too, with earlier times as values.
    """
    of_running: dict[str, None] = {}
    of_waiting: dict[str, None] = {}
    for output in outputs:
        request = output.request
        if request.adapter is not None:
            there = of_running if request.status is RequestStatus.RUNNING else of_waiting
            there[request.adapter] = None
    info = instruments.lora_requests_info
    info.clear()
    info.labels(str(max_loras), ",".join(of_waiting), ",".join(of_running)).set_to_current_time()
