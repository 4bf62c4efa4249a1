"""Stand-ins for the real engine and its probe."""

from types import SimpleNamespace
from typing import Any

BUDGET = 8192


class Registered(dict[int, Any]):
    """Stands in for vLLM's LRUCache of adapters."""

    @property
    def cache(self) -> dict[int, Any]:
        return self


class Lora(SimpleNamespace):
    def clone(self, number: int) -> "Lora":
        return Lora(id=number)


class EngineDouble:
    """Schedules like vLLM as far as the phases can see: running requests first, a token budget, one token a
    decode.
    """

    def __init__(self, max_loras: int, probe: "ProbeDouble") -> None:
        self.max_loras, self.probe = max_loras, probe
        self.requests: dict[str, SimpleNamespace] = {}
        self.registered = Registered()
        self.scheduler = SimpleNamespace(requests=self.requests)
        self.core = SimpleNamespace(
            vllm_config=SimpleNamespace(model_config=SimpleNamespace(max_model_len=16384)),
            remove_lora=self.registered.pop,
        )
        self.lora_manager = SimpleNamespace(
            _adapter_manager=SimpleNamespace(_registered_adapters=self.registered)
        )
        self._ids: dict[str, int] = {}
        self.store = SimpleNamespace(
            request=lambda name: SimpleNamespace(lora_int_id=self._ids.setdefault(name, len(self._ids) + 1))
        )

    def prepare(self, request_id: str, input_length: int, output_length: int, adapter: str | None) -> Any:
        assert input_length > 0 and input_length + output_length <= 16384
        return SimpleNamespace(
            request_id=request_id,
            left=input_length,
            max_tokens=output_length,
            num_output_tokens=0,
            adapter=adapter,
        )

    def submit(self, request: Any) -> None:
        assert request.request_id not in self.requests, f"{request.request_id} is used twice"
        self.requests[request.request_id] = request

    def add(self, request_id: str, input_length: int, output_length: int, adapter: str | None = None) -> str:
        self.submit(self.prepare(request_id, input_length, output_length, adapter))
        return request_id

    def has_requests(self) -> bool:
        return bool(self.requests)

    def step(self) -> list[Any]:
        budget, adapters, outputs = BUDGET, set(), []
        for request_id, request in list(self.requests.items()):
            if request.adapter is not None and request.adapter not in adapters:
                if len(adapters) == self.max_loras:
                    continue
                adapters.add(request.adapter)
            tokens = min(max(request.left, 1), budget)
            budget -= tokens
            request.left -= tokens
            if tokens and request.left <= 0:
                request.num_output_tokens += 1
                finished = request.num_output_tokens >= request.max_tokens
                outputs.append(SimpleNamespace(request_id=request_id, new_token_ids=[0], finished=finished))
                if finished:
                    del self.requests[request_id]
        for adapter in adapters:
            number = self.store.request(adapter).lora_int_id
            self.registered.setdefault(number, Lora(id=number))
        self.probe.steps.append((self.probe.phase, BUDGET - budget, len(adapters)))
        return outputs

    def step_until(self, done: Any) -> None:
        for _ in range(10_000):
            if done() or not self.has_requests():
                return
            self.step()
        raise AssertionError("a phase never ends")

    def drain(self) -> None:
        self.step_until(lambda: False)

    def abort(self, request_ids: list[str]) -> None:
        for request_id in request_ids:
            self.requests.pop(request_id, None)

    def reassign(self, adapters: dict[str, str | None]) -> None:
        for request_id, adapter in adapters.items():
            self.requests[request_id].adapter = adapter

    def forget_adapters(self) -> None:
        self.registered.clear()

    def release_pinned_memory(self) -> None:
        pass


class ProbeDouble:
    def __init__(self) -> None:
        self.phase = ""
        self.steps: list[tuple[str, int, int]] = []

    def label(self, phase: str, cell: str = "") -> None:
        self.phase = phase

    def synchronize(self) -> None:
        pass
