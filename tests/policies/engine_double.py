"""An engine that a test drives by hand, as policies see it."""

from collections.abc import Collection
from dataclasses import dataclass, field

from policies.view import RequestView

MS = 10**6
S = 10**9


class CostsDouble:
    """Ten steps to an activation, ten activations to a load."""

    def load_ns(self, adapter: str) -> int:
        return 1000 * MS

    def activate_ns(self, adapter: str) -> int:
        return 100 * MS

    def step_ns(self, num_reqs: int, num_adapters: int, num_prefill_tokens: int = 0) -> int:
        return 10 * MS

    def size_bytes(self, adapter: str) -> int:
        return 100 + ord(adapter[0])


@dataclass
class EngineDouble:
    """Everything can be set."""

    max_loras: int = 2
    max_num_seqs: int = 4
    max_cpu_loras: int = 4
    max_num_batched_tokens: int = 100
    now_ns: int = 0
    running: list[RequestView] = field(default_factory=list)
    waiting: list[RequestView] = field(default_factory=list)
    num_tokens: dict[RequestView, int] = field(default_factory=dict)
    slots: Collection[str] = ()
    host_cache: Collection[str] = ()
    costs: CostsDouble = field(default_factory=CostsDouble)

    def num_running(self, adapter: str) -> int:
        return sum(request.adapter == adapter for request in self.running)

    def num_waiting(self, adapter: str) -> int:
        return sum(request.adapter == adapter for request in self.waiting)

    def num_output_tokens(self, request: RequestView) -> int:
        return self.num_tokens.get(request, 0)

    def next_arrival_ns(self, adapter: str) -> float:
        return float("inf")
