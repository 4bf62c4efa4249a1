"""What a routing policy is given and what it must answer."""

from collections.abc import Collection, Sequence
from typing import Protocol


class RoutedRequest(Protocol):
    """What a policy may know of a request."""

    @property
    def request_id(self) -> str:
        """Its name, unique in a run."""
        ...

    @property
    def arrival_ns(self) -> int:
        """When it arrived, which is now, in ns."""
        ...

    @property
    def num_prompt_tokens(self) -> int:
        """The length of its prompt."""
        ...

    @property
    def adapter(self) -> str | None:
        """The LoRA adapter that it asks for, or None for the base model."""
        ...


class ReplicaView(Protocol):
    """State of one replica, as it is now."""

    @property
    def num_waiting(self) -> int:
        """Requests that wait for a place in the batch."""
        ...

    @property
    def num_running(self) -> int:
        """Requests in the batch."""
        ...

    @property
    def slots(self) -> Collection[str]:
        """The adapters in GPU slots."""
        ...

    @property
    def host_cache(self) -> Collection[str]:
        """The adapters in the host cache."""
        ...


class RoutingPolicy(Protocol):
    """The router in front of the replicas."""

    def route(self, request: RoutedRequest, replicas: Sequence[ReplicaView]) -> int:
        """Return the index of the replica that gets `request`, for good."""
        ...
