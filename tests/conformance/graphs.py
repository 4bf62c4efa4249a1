"""Shapes of steps, and which graph each replays."""

import random
from dataclasses import dataclass
from typing import Any

from sim.config import EngineConfig
from sim.cudagraph import CudaGraphs, capture_sizes, lora_cases

RULES = ("graph_choice", "specialize_active_lora")


@dataclass
class GraphsCase:
    engine: dict[str, Any]
    shapes: list[tuple[int, int, int, int]]
    """Requests, tokens, most tokens of one request, adapters."""

    @property
    def config(self) -> EngineConfig:
        return EngineConfig(**self.engine)


def our_answers(case: GraphsCase) -> dict[str, Any]:
    config = case.config
    graphs = CudaGraphs(config)
    sizes = capture_sizes(config.max_num_seqs, config.max_num_batched_tokens)
    return {
        "capture_sizes": [] if config.enforce_eager else sizes,
        "lora_cases": lora_cases(config.max_loras, config.specialize_active_lora),
        "choices": [list(graphs.choose(*shape)) for shape in case.shapes],
    }


def draw_case(rng: random.Random, num_shapes: int = 100) -> GraphsCase:
    max_num_seqs = rng.choice([1, 2, 3, 7, 8, 100, 128, 255, 256, 300, rng.randint(1, 600)])
    engine = {
        "max_loras": rng.choice([1, 2, 3, 4, 8, 13, 32, 64]),
        "max_num_seqs": max_num_seqs,
        "max_num_batched_tokens": max_num_seqs + rng.choice([0, 1, 7, 100, 8192]),
        "specialize_active_lora": rng.random() < 0.5,
        "enforce_eager": rng.random() < 0.1,
    }
    return GraphsCase(engine, [draw_shape(rng, EngineConfig(**engine)) for _ in range(num_shapes)])


def draw_shape(rng: random.Random, config: EngineConfig) -> tuple[int, int, int, int]:
    num_reqs = rng.randint(1, config.max_num_seqs)
    num_tokens = rng.choice([num_reqs, rng.randint(num_reqs, config.max_num_batched_tokens)])
    max_query_len = rng.randint(-(-num_tokens // num_reqs), num_tokens - num_reqs + 1)
    return num_reqs, num_tokens, max_query_len, rng.randint(0, min(num_reqs, config.max_loras))
