"""What policies may see of the engine that they work for."""

from collections.abc import Collection, Hashable
from typing import Protocol


class RequestView(Hashable, Protocol):
    """What a policy may know of a request. Requests are otherwise opaque, and compared by identity."""

    @property
    def request_id(self) -> str:
        """Its name, unique in a run."""
        ...

    @property
    def arrival_ns(self) -> int:
        """When it arrived, in ns."""
        ...

    @property
    def priority(self) -> int:
        """The smaller, the more urgent, as in vLLM."""
        ...

    @property
    def adapter(self) -> str | None:
        """The LoRA adapter that it asks for, or None for the base model."""
        ...

    @property
    def num_prompt_tokens(self) -> int:
        """Length of its prompt."""
        ...

    @property
    def max_tokens(self) -> int:
        """Most tokens that it may generate; when it stops by itself is not known."""
        ...


class Costs(Protocol):
    """What things are expected to take, as the profile has it: means where the engine draws."""

    def load_ns(self, adapter: str) -> int:
        """Time of one load from disk to the host cache."""
        ...

    def activate_ns(self, adapter: str) -> int:
        """Time of one activation, from the host cache to a GPU slot."""
        ...

    def step_ns(self, num_reqs: int, num_adapters: int, num_prefill_tokens: int = 0) -> int:
        """Time of a step of `num_reqs` requests, with `num_prefill_tokens` tokens of prompts among theirs."""
        ...

    def size_bytes(self, adapter: str) -> int:
        """What the adapter takes of the host cache."""
        ...


class EngineView(Protocol):
    """One engine, as it is at the moment; read only, and never copied by who looks at it."""

    @property
    def now_ns(self) -> int:
        """The clock, in ns."""
        ...

    @property
    def max_loras(self) -> int:
        """GPU slots: the most distinct adapters of one step."""
        ...

    @property
    def max_cpu_loras(self) -> int:
        """Entries of the host cache."""
        ...

    @property
    def max_num_seqs(self) -> int:
        """Most running requests."""
        ...

    @property
    def max_num_batched_tokens(self) -> int:
        """Most tokens of a step."""
        ...

    @property
    def slots(self) -> Collection[str]:
        """The adapters in GPU slots."""
        ...

    @property
    def host_cache(self) -> Collection[str]:
        """The adapters in the host cache."""
        ...

    @property
    def running(self) -> Collection[RequestView]:
        """The running requests."""
        ...

    @property
    def costs(self) -> Costs:
        """What things take."""
        ...

    def num_running(self, adapter: str) -> int:
        """Running requests that ask for `adapter`."""
        ...

    def num_waiting(self, adapter: str) -> int:
        """Waiting requests that ask for `adapter`."""
        ...

    def num_output_tokens(self, request: RequestView) -> int:
        """Tokens that `request` has generated so far, in steps whose results are known."""
        ...

    def next_arrival_ns(self, adapter: str) -> float:
        """When the next request for `adapter` will arrive; infinity: never.

        Only a simulation knows. Real engines answer with infinity, and only a bound such as `belady` asks.
        """
        ...
