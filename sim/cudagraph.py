"""Which CUDA graph a step replays, and how far it is padded."""

from bisect import bisect_left
from typing import Literal, NamedTuple

from sim.config import EngineConfig

GraphMode = Literal["full", "piecewise", "none"]


class GraphChoice(NamedTuple):
    """vLLM's `BatchExecutionDescriptor` (vllm/v1/worker/gpu/cudagraph_utils.py)."""

    mode: GraphMode
    num_padded_tokens: int
    lora_case: int
    """The number of active adapters that the LoRA kernels are launched for."""


def capture_sizes(max_num_seqs: int, max_num_batched_tokens: int) -> list[int]:
    """Token counts that vLLM captures graphs for, ascending (vllm/config/vllm.py, `_set_cudagraph_sizes`)."""
    largest = min(max_num_seqs * 2, 512, max_num_batched_tokens)
    sizes = {1, 2, 4, *range(8, 256, 8), *range(256, largest + 1, 16)}
    if max_num_batched_tokens <= largest:
        sizes.add(max_num_batched_tokens)
    return sorted(size for size in sizes if size <= largest)


def lora_cases(max_loras: int, specialize_active_lora: bool) -> list[int]:
    """Numbers of adapters that graphs are captured for (vllm/lora/utils.py, `get_captured_lora_counts`)."""
    powers = [1 << n for n in range(max_loras.bit_length()) if specialize_active_lora and 1 << n <= max_loras]
    return [0, *powers, max_loras + 1]


class CudaGraphs:
    """vLLM's `CudaGraphManager.dispatch` for `FULL_AND_PIECEWISE`, its default."""

    def __init__(self, config: EngineConfig) -> None:
        eager = config.enforce_eager
        sizes = config.cudagraph_capture_sizes
        if sizes is None:
            sizes = capture_sizes(config.max_num_seqs, config.max_num_batched_tokens)
        self.sizes = [] if eager else sorted(sizes)
        """Token counts that graphs are captured for, ascending."""
        self.largest_full = config.max_num_seqs if config.cudagraph_mode == "FULL_AND_PIECEWISE" else 0
        """Up to this size there is a full graph, too."""
        self._lora_cases = lora_cases(config.max_loras, config.specialize_active_lora)
        self._choices: dict[tuple[int, bool, int], GraphChoice] = {}

    def choose(self, num_reqs: int, num_tokens: int, max_query_len: int, num_adapters: int) -> GraphChoice:
        """The graph for a step of `num_tokens` tokens, at most `max_query_len` of them of one request.

        Steps of one token per request replay a full graph, where one is captured: the next size may exceed
        `max_num_seqs`, and then has a piecewise graph only, as all other steps do (and as all do in
        `PIECEWISE` mode).
        """
        uniform = max_query_len == 1 and num_tokens == num_reqs
        index = bisect_left(self.sizes, num_tokens)
        key = index, uniform, num_adapters
        known = self._choices.get(key)
        if known is None:
            lora_case = self._lora_cases[bisect_left(self._lora_cases, num_adapters)]
            if index == len(self.sizes):
                return GraphChoice("none", num_tokens, lora_case)
            size = self.sizes[index]
            mode: GraphMode = "full" if uniform and size <= self.largest_full else "piecewise"
            known = self._choices[key] = GraphChoice(mode, size, lora_case)
        return known
