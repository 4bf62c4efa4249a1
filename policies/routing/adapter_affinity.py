"""All requests of an adapter to the same replica, as long as that is not overloaded."""

from collections.abc import Sequence
from hashlib import blake2b

from policies.parameters import checked
from policies.routing.least_loaded import LeastLoaded, load
from policies.routing.protocol import ReplicaView, RoutedRequest


class AdapterAffinity:
    """Rendezvous hashing (Thaler and Ravishankar, 1998): each adapter has a home, and another number of
    replicas moves as few adapters as can be. A request whose home has over `max_lead` requests more than the
    least loaded replica goes to that one, and so does one without an adapter.
    """

    def __init__(self, max_lead: int = 16) -> None:
        self._max_lead = checked("max_lead", max_lead, at_least=0)
        self._least_loaded = LeastLoaded()
        self._homes: dict[tuple[str, int], int] = {}

    def route(self, request: RoutedRequest, replicas: Sequence[ReplicaView]) -> int:
        """Return the home of the request's adapter, or the least loaded replica."""
        least = self._least_loaded.route(request, replicas)
        if request.adapter is None:
            return least
        home = self._home(request.adapter, len(replicas))
        return home if load(replicas[home]) - load(replicas[least]) <= self._max_lead else least

    def _home(self, adapter: str, num_replicas: int) -> int:
        home = self._homes.get((adapter, num_replicas))
        if home is None:
            home = max(range(num_replicas), key=lambda index: _score(adapter, index))
            self._homes[adapter, num_replicas] = home
        return home


def _score(adapter: str, replica: int) -> bytes:
    return blake2b(f"{replica}/{adapter}".encode(), digest_size=8).digest()
