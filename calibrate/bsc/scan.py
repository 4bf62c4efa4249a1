"""Measure what vLLM 0.8.5's scheduler takes to pass over a waiting request: `python -m calibrate.bsc.scan`.

No microbenchmark of the study has a waiting queue that is searched in vain, so this one constant is measured
apart: the same operations of the interpreter, in the same order, on objects as large (vllm/v1/core/sched/
scheduler.py, `schedule`). It depends on the CPU, and on Python: the study had 3.12.
"""

from collections import deque
from dataclasses import dataclass, field
from enum import IntEnum, auto
from pathlib import Path

from omegaconf import DictConfig

from calibrate.bsc.host_cost import least_ns, write_cost
from sim.cli import hydra_entry


class _Status(IntEnum):
    WAITING = auto()
    WAITING_FOR_FSM = auto()


@dataclass
class _Adapter:
    lora_int_id: int


@dataclass
class _Request:
    lora_request: _Adapter
    status: _Status = _Status.WAITING
    prompt_token_ids: list[int] = field(default_factory=list)


@dataclass
class _Limits:
    max_loras: int


class Queue:
    """A waiting queue of which no request's adapter fits."""

    def __init__(self, num_requests: int, num_tokens: int, num_adapters: int, max_loras: int) -> None:
        self.lora_config = _Limits(max_loras)
        self.max_num_running_reqs = num_requests + 1
        self.running: list[_Request] = []
        self.scheduled_loras = set(range(-max_loras, 0))
        self.waiting = deque(
            _Request(_Adapter(number % num_adapters), prompt_token_ids=list(range(num_tokens)))
            for number in range(num_requests)
        )

    def search(self) -> None:
        """Pass over all requests and put them back."""
        scheduled_loras, token_budget = self.scheduled_loras, 1
        skipped: deque[_Request] = deque()
        while self.waiting and token_budget > 0:
            if len(self.running) == self.max_num_running_reqs:
                break
            request = self.waiting[0]
            if request.status == _Status.WAITING_FOR_FSM:
                continue
            if (
                self.lora_config
                and request.lora_request
                and (
                    len(scheduled_loras) == self.lora_config.max_loras
                    and request.lora_request.lora_int_id not in scheduled_loras
                )
            ):
                self.waiting.popleft()
                skipped.appendleft(request)
                continue
            break
        if skipped:
            self.waiting.extendleft(skipped)


def measure(num_requests: int, repeats: int) -> float:
    """Return the least CPU time for one request, in ms, of a queue of `num_requests` with 223 tokens each."""
    queue = Queue(num_requests, 223, 384, 16)
    return least_ns(queue.search, repeats) / num_requests / 1e6


def task(cfg: DictConfig) -> None:
    """Measure and write the result."""
    out, cost_ms = Path(cfg.out), measure(cfg.num_requests, cfg.repeats)
    result = write_cost(out, "ms_per_request", cost_ms, num_requests=cfg.num_requests)
    print(f"{1e6 * result['ms_per_request']:.0f} ns for a waiting request, Python {result['python']}: {out}")


def main() -> None:
    """Entry point."""
    hydra_entry(task, "bsc_scan", "calibrate.bsc.scan")


if __name__ == "__main__":
    main()
