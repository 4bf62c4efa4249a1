"""The loader: brings adapters to the host cache beside the engine's work, as a prefetch policy wants."""

from collections import defaultdict, deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from simpy import Environment
from simpy.events import Event

from policies.prefetch import PrefetchPolicy
from sim.adapters import AdapterEvent, AdapterTiers
from sim.config import LoaderConfig
from sim.request import Request

SHORTEST_NS = 1_000_000
"""The policy is not asked more often for the clock's sake alone."""


def _nobody(*told: object) -> None:
    """Nobody is told."""


@dataclass(eq=False)
class Loader:
    """Loads one adapter after another, and holds requests back until theirs is in the host cache."""

    env: Environment
    config: LoaderConfig
    policy: PrefetchPolicy
    tiers: AdapterTiers
    load_ns: Callable[[str], int]
    """Draws how long a load takes."""
    in_use: Callable[[], Collection[str]]
    """The adapters that somebody runs with, or could."""
    on_ready: Callable[[list[Request]], None] = field(default=_nobody)
    """Told which requests wait for the engine alone, at the end of a load."""
    on_change: Callable[[], None] = field(default=_nobody)
    """Told when the loader begins to work, or ends."""
    on_events: Callable[[list[AdapterEvent]], None] = field(default=_nobody)
    """Told of loads and evictions."""
    num_held: int = field(default=0, init=False)
    is_due: bool = field(default=False, init=False)
    """Whether `give` is to be called between two steps."""
    _held: defaultdict[str, list[Request]] = field(default_factory=lambda: defaultdict(list), init=False)
    _loading: str | None = field(default=None, init=False)
    _given: deque[str] = field(default_factory=deque, init=False)
    """Loads that follow the one that is under way."""
    _left: set[str] = field(default_factory=set, init=False)
    """What has made room at the instant `_left_ns`."""
    _left_ns: int = field(default=-1, init=False)
    _alarm: Event | None = field(default=None, init=False)
    _stopped: bool = field(default=False, init=False)

    @property
    def is_busy(self) -> bool:
        """Whether a load is under way."""
        return self._loading is not None

    def arrive(self, request: Request) -> bool:
        """Take note of a request that waits; returns whether it is held back."""
        self.policy.on_arrival(request)
        adapter = request.adapter
        held = adapter is not None and adapter not in self.tiers.host_cache
        if held and adapter is not None:
            self._held[adapter].append(request)
            self.num_held += 1
        self.look()
        return held

    def requeue(self, request: Request) -> None:
        """Take note of a request that was preempted: its adapter is there, and stays."""
        self.policy.on_arrival(request)

    def depart(self, request: Request) -> None:
        """Take note of a request that waits no longer."""
        self.policy.on_departure(request)

    def abort(self, request: Request) -> bool:
        """Forget a request; returns whether it was held back."""
        self.policy.on_departure(request)
        held = self._held.get(request.adapter or "", [])
        if request not in held:
            return False
        held.remove(request)
        self.num_held -= 1
        if not held:
            del self._held[request.adapter or ""]
        return True

    def stop(self) -> None:
        """Load nothing any more: a load that is under way does not end."""
        self._stopped = True

    def look(self) -> None:
        """Begin the next load, if there is one to do and room for it; or have it given between two steps."""
        if self._stopped:
            return
        if self.config.jobs is not None:
            self.is_due = True
            self.on_change()
        elif self._loading is None:
            self.give()

    def give(self) -> None:
        """Take on the loads that are wanted next, as many as may be given ahead and there is room for."""
        self.is_due = False
        places = (self.config.jobs or 1) - self._num_coming
        if self._stopped or not places:
            return
        for adapter in self.policy.wanted():
            if adapter in self.tiers.host_cache or self._is_coming(adapter) or self._has_just_left(adapter):
                continue
            if not self._make_room():
                break
            self._given.append(adapter)
            places -= 1
            if not places:
                break
        self._begin_next()

    def _is_coming(self, adapter: str) -> bool:
        return adapter == self._loading or adapter in self._given

    @property
    def _num_coming(self) -> int:
        return len(self._given) + self.is_busy

    def _begin_next(self) -> None:
        if self._loading is None:
            if self._given:
                self._begin(self._given.popleft())
            else:
                self._look_again()

    def _begin(self, adapter: str) -> None:
        self._loading = adapter
        self.on_change()
        end = self.env.timeout(round(self.config.load_factor * self.load_ns(adapter)))
        end.callbacks.append(lambda _: self._end(adapter))

    def _end(self, adapter: str) -> None:
        if self._stopped:
            return
        self._loading = None
        self.on_change()
        self.on_events(self.tiers.insert_host(adapter))
        ready = self._held.pop(adapter, [])
        self.num_held -= len(ready)
        self.on_ready(ready)
        if self._given:
            self._begin(self._given.popleft())
        self.look()

    def _make_room(self) -> bool:
        """Evict, where the host cache is full, what nobody runs with or waits for."""
        tiers = self.tiers
        if len(tiers.host_cache) + self._num_coming < tiers.max_cpu_loras:
            return True
        in_use = self.in_use()
        if tiers.host_cache <= set(in_use):
            return False
        # The engine may be in the middle of steps that it makes up for later, and so may the policy's counts.
        self.on_change()
        events = tiers.evict_host(in_use)
        if self._left_ns != self.env.now:
            self._left, self._left_ns = set(), int(self.env.now)
        self._left.update(event.adapter for event in events)
        self.on_events(events)
        return True

    def _has_just_left(self, adapter: str) -> bool:
        """Whether `adapter` has made room at this instant, and nobody waits for it.

        What is wanted may push each other out: where loads take no time, for ever at the same instant.
        """
        return self._left_ns == self.env.now and adapter in self._left and adapter not in self._held

    def _look_again(self) -> None:
        """Ask the policy again when it says so."""
        change_ns = self.policy.next_change_ns()
        if change_ns is None:
            return
        self._alarm = alarm = self.env.timeout(max(SHORTEST_NS, change_ns - int(self.env.now)))
        alarm.callbacks.append(lambda _: self.look() if alarm is self._alarm else None)
