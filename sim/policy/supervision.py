"""Policies under watch: what they raise, return and leave undone becomes a PolicyError that names them."""

from collections import Counter
from collections.abc import Collection, Iterator, Sequence

from policies.admission import AdmissionPolicy, AdmissionView
from policies.errors import PolicyError, check_offer, is_one_of, shown, some, wrong_answer
from policies.eviction import EvictionPolicy, TierView
from policies.prefetch import PrefetchPolicy
from policies.routing import ReplicaView, RoutedRequest, RoutingPolicy
from policies.view import EngineView
from sim.policy.watch import Patience, Watch
from sim.request import Request


class WatchedAdmission(AdmissionPolicy[Request]):
    """An admission policy that offers only what waits, and lets nobody wait over `starvation_ns` who would
    have fitted in the step.
    """

    def __init__(self, policy: AdmissionPolicy[Request], starvation_ns: int) -> None:
        self._watch = Watch(policy, "admission")
        self._waiting = Patience(self._watch.name, starvation_ns)
        self._engine: EngineView | None = None

    def bind(self, engine: EngineView) -> None:
        """Pass it on."""
        self._engine = engine
        self._watch.call("bind", engine)

    def add(self, request: Request) -> None:
        """Take note."""
        self._waiting.begin(request, self._now_ns)
        self._watch.call("add", request)

    def requeue(self, request: Request) -> None:
        """Take note."""
        self._waiting.begin(request, self._now_ns)
        self._watch.call("requeue", request)

    def overtakes(self, request: Request) -> bool:
        """Pass it on."""
        return bool(self._watch.call("overtakes", request))

    def remove(self, request: Request) -> None:
        """Take note."""
        self._waiting.end(request)
        self._watch.call("remove", request)

    def candidates(self, view: AdmissionView) -> Iterator[Request]:
        """Pass on what waits, each request once. Who asks on after the last has room for more."""
        offered: set[Request] = set()
        for request in self._watch.each("candidates", view):
            check_offer(self._watch.policy, request, self._waiting, offered)
            offered.add(request)
            yield request
        for request in self._waiting.overdue(self._now_ns):
            if view.accepts(request.adapter):
                raise self._waiting.lost(request, self._now_ns, "while there was room for it")

    def admit(self, request: Request) -> None:
        """Take note."""
        self._waiting.end(request)
        self._watch.call("admit", request)

    def on_finish(self, request: Request) -> None:
        """Pass it on."""
        self._watch.call("on_finish", request)

    def next_change_ns(self) -> int | None:
        """As the policy says, and when the first of those who wait now would starve."""
        return self._waiting.earliest_ns(self._watch.next_change_ns())

    def __len__(self) -> int:
        """As was counted here: the policy is not asked."""
        return len(self._waiting)

    @property
    def _now_ns(self) -> int:
        return 0 if self._engine is None else self._engine.now_ns


class WatchedEviction(EvictionPolicy):
    """An eviction policy that gives up only what is there."""

    def __init__(self, policy: EvictionPolicy, group: str) -> None:
        self._watch = Watch(policy, group)
        self.name = type(policy).__name__
        self._keys: dict[str, None] = {}

    def bind(self, tier: TierView) -> None:
        """Pass it on."""
        self._watch.call("bind", tier)

    def on_miss(self, key: str) -> None:
        """Pass it on."""
        self._watch.call("on_miss", key)

    def on_insert(self, key: str) -> None:
        """Take note."""
        self._keys[key] = None
        self._watch.call("on_insert", key)

    def on_access(self, key: str) -> None:
        """Pass it on."""
        self._watch.call("on_access", key)

    def on_repeat(self, keys: Collection[str], num_steps: int, last_ns: int) -> None:
        """Pass it on."""
        self._watch.call("on_repeat", keys, num_steps, last_ns)

    def on_remove(self, key: str) -> None:
        """Take note."""
        self._keys.pop(key, None)
        self._watch.call("on_remove", key)

    def victim(self, needed: Collection[str]) -> str:
        """Return what is in the tier."""
        key: str = self._watch.call("victim", needed)
        if not is_one_of(key, self._keys):
            raise wrong_answer(self._watch.policy, key, "which is not in the tier", self._keys)
        return key


class WatchedPrefetch(PrefetchPolicy):
    """A prefetch policy that wants only adapters that there are, in an end, and lets nobody wait over
    `starvation_ns` for one that could be loaded.

    `adapters`: those that can be served. Those that are asked for are known too.
    """

    _engine: EngineView

    def __init__(self, policy: PrefetchPolicy, adapters: Collection[str], starvation_ns: int) -> None:
        self._watch = Watch(policy, "prefetch")
        self._adapters = dict.fromkeys(adapters)
        self._waiting = Patience(self._watch.name, starvation_ns)
        self._waited_for: Counter[str | None] = Counter()

    def bind(self, engine: EngineView) -> None:
        """Pass it on."""
        self._engine = engine
        self._watch.call("bind", engine)

    def on_arrival(self, request: Request) -> None:  # type: ignore[override]  # What the engine gives.
        """Take note."""
        self._waiting.begin(request, self._engine.now_ns)
        self._waited_for[request.adapter] += 1
        if request.adapter is not None:
            self._adapters[request.adapter] = None
        self._watch.call("on_arrival", request)

    def on_departure(self, request: Request) -> None:  # type: ignore[override]
        """Take note."""
        self._waiting.end(request)
        self._waited_for[request.adapter] -= 1
        self._watch.call("on_departure", request)

    def wanted(self) -> Iterator[str]:
        """Pass on what there is. Who asks on after the last could load something, but has nothing to load."""
        most = 2 * (len(self._adapters) + len(self._waiting))
        for number, adapter in enumerate(self._watch.each("wanted")):
            self._check(adapter, ends=number < most)
            if not self._waited_for[adapter] and adapter not in self._engine.host_cache:
                self._check_nobody_starves(f"for a load, while {adapter} is wanted, for which nobody waits")
            yield adapter
        self._check_nobody_starves("for a load, while the loader had nothing to do and there was room")

    def next_change_ns(self) -> int | None:
        """As the policy says, and when the first of those who wait now would starve."""
        return self._waiting.earliest_ns(self._watch.next_change_ns())

    def _check(self, adapter: object, ends: bool) -> None:
        if not is_one_of(adapter, self._adapters):
            raise PolicyError(
                f"{self._watch.name}: wanted yielded {shown(adapter)}, which is no adapter of this run; "
                f"allowed: {some(self._adapters)}"
            )
        if not ends:
            raise PolicyError(
                f"{self._watch.name}: wanted yields without an end; there are {len(self._adapters)} adapters "
                f"and {len(self._waiting)} waiting requests"
            )

    def _check_nobody_starves(self, why: str) -> None:
        """Raise PolicyError where somebody has waited too long for a load that there was room for."""
        now_ns, host_cache = self._engine.now_ns, self._engine.host_cache
        for request in self._waiting.overdue(now_ns):
            held = request.adapter is not None and request.adapter not in host_cache
            if held and self._has_room():
                raise self._waiting.lost(request, now_ns, why)

    def _has_room(self) -> bool:
        """Whether a load may begin, as the loader sees it."""
        engine = self._engine
        if len(engine.host_cache) < engine.max_cpu_loras:
            return True
        return not all(engine.num_running(key) or engine.num_waiting(key) for key in engine.host_cache)


class WatchedRouting(RoutingPolicy):
    """A routing policy that chooses one of the replicas."""

    def __init__(self, policy: RoutingPolicy) -> None:
        self._watch = Watch(policy, "routing")

    def route(self, request: RoutedRequest, replicas: Sequence[ReplicaView]) -> int:
        """Return the index of a replica."""
        chosen = self._watch.call("route", request, replicas)
        if type(chosen) is not int or not 0 <= chosen < len(replicas):
            raise PolicyError(
                f"{self._watch.name}: sent {request.request_id} to replica {shown(chosen)}; "
                f"expected 0 to {len(replicas) - 1}"
            )
        return chosen
