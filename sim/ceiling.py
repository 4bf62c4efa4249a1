"""What no policy can exceed, by counting the work that tokens take at least.

A step whose results are B tokens takes the GPU at least as long as one that decodes B requests without any
context, for one adapter in one slot; the GPU does one step after the other; and a request has one token of a
step at most. So it holds for every policy, `max_loras` and `max_cpu_loras`, and for every order of admission
(unlike sim.bounds, which simulates one order). It counts no prompt, no context and no work of the host, so
that under saturation it lies far above what can be reached.
"""

from dataclasses import dataclass

from sim import profile
from sim.config import RunConfig
from sim.costs import FS_PER_NS, GRAPHS, CostModel, StepShape
from sim.metrics import NS_PER_S
from sim.workload import requests

FS_PER_S = FS_PER_NS * 10**9


@dataclass(frozen=True)
class Work:
    """The least times of steps, in fs of the GPU."""

    costs: CostModel
    max_lora_rank: int
    num_adapters: int
    """1, or 0 where a step may do without."""

    def step_fs(self, num_tokens: int) -> int:
        """Return the least time of a step that gives so many requests a token each."""
        return min(self.costs.step(self._shape(graph, num_tokens)).gpu_fs for graph in GRAPHS)

    def tokens_per_s(self, most: int) -> float | None:
        """Return the highest rate of steps for at most so many requests; None where steps take no time."""
        times_fs = [self.step_fs(number) for number in range(1, most + 1)]
        if not all(times_fs):
            return None
        return max(number * FS_PER_S / time_fs for number, time_fs in enumerate(times_fs, 1))

    def _shape(self, graph: str, num_tokens: int) -> StepShape:
        return StepShape(
            graph=graph,
            num_padded_tokens=num_tokens,
            num_reqs=num_tokens,
            num_tokens=num_tokens,
            num_prefill_tokens=0,
            num_prefill_reqs=0,
            attention_work=0,
            kv_tokens=0,
            num_adapters=self.num_adapters,
            num_lora_tokens=num_tokens * self.num_adapters,
            num_waiting=0,
            host_cache_entries=self.num_adapters,
            max_loras=1,
            max_lora_rank=self.max_lora_rank,
        )


def ceiling(config: RunConfig) -> dict[str, float | None]:
    """Return ``output_throughput`` (tokens/s) and ``request_goodput`` (requests/s) that nothing exceeds.

    By the GPU's rate and, where the window's end is fixed in the open loop, by what could be done in time of
    what arrives if each request had the GPU to itself. None where neither says anything.
    """
    work = _work(config)
    workload, window_s = config.workload, _window_s(config)
    at_once = config.engine.max_num_seqs * config.replicas
    most = min(config.engine.max_num_seqs, workload.concurrency or 1) if workload.mode == "closed" else None
    rate = work.tokens_per_s(config.engine.max_num_seqs if most is None else most)
    limits = []
    if rate is not None and (window_s is not None or not config.warmup_s):
        # The first step of the window may have begun before it.
        limits.append(rate * config.replicas + (at_once / window_s if config.warmup_s and window_s else 0.0))
    if window_s is None or workload.mode == "closed":
        return {"output_throughput": min(limits, default=None), "request_goodput": None}
    tokens, done = _in_time(config, work)
    return {
        "output_throughput": min([*limits, tokens / window_s]),
        "request_goodput": done / window_s,
    }


def _work(config: RunConfig) -> Work:
    engine, workload = config.engine, config.workload
    # A profile of its own: the engine's notes which steps leave what was measured.
    costs = profile.load(config.profile, engine, config.model, set(), config.seed).costs
    may_do_without = workload.base_model_share > 0 or workload.path is not None
    return Work(costs, engine.max_lora_rank, 0 if may_do_without else 1)


def _window_s(config: RunConfig) -> float | None:
    """Return the length of the metrics window; None where it depends on when all is done."""
    workload = config.workload
    if config.duration_ns is None or workload.num_requests is not None or workload.path is not None:
        return None
    return config.duration_ns / NS_PER_S - config.warmup_s


def _in_time(config: RunConfig, work: Work) -> tuple[int, int]:
    """Return how many tokens, and whole requests, could be done by the end of the run at most."""
    step_fs, end_ns = work.step_fs(1), config.duration_ns or 0
    tokens = done = 0
    for spec in requests(config.workload, config.seed):
        left_fs = (end_ns - spec.arrival_ns) * FS_PER_NS
        possible = spec.output_length if not step_fs else min(spec.output_length, left_fs // step_fs)
        tokens += possible
        done += possible == spec.output_length
    return tokens, done
