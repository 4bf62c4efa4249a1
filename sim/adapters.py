"""Where adapters are: disk, host cache, GPU slots."""

from collections import deque
from collections.abc import Callable, Collection, Sequence
from functools import partial
from hashlib import blake2b
from heapq import heappop, heappush
from typing import Literal, NamedTuple, get_args

from policies.errors import PolicyError
from policies.eviction import EvictionPolicy

EventKind = Literal["load", "activate", "evict_host", "evict_slot"]
EVENT_KINDS: tuple[EventKind, ...] = get_args(EventKind)


class AdapterEvent(NamedTuple):
    """Something that happened to an adapter while a step was prepared."""

    kind: EventKind
    """`load`: disk to host cache; `activate`: host cache to GPU slot; the others are the ways back."""
    adapter: str
    slot: int | None = None
    """GPU slot that is filled or vacated."""


_event: Callable[[tuple[str, str, int]], AdapterEvent] = partial(tuple.__new__, AdapterEvent)
"""From a tuple of all fields, several a step: at half the price of the class's own `__new__`."""


class AdapterTiers:
    """vLLM's `LRUCacheWorkerLoRAManager` and `LRUCacheLoRAModelManager` (vllm/lora), with pluggable eviction.

    The tiers are inclusive: an adapter that leaves the host cache leaves its slot. A step's adapters are
    applied one after another, in the iteration order of a Python set, which in vLLM differs between
    processes. Here it is drawn from `seed`: each adapter name stands for a random 61-bit integer, which is
    its own hash.
    """

    def __init__(
        self,
        max_loras: int,
        max_cpu_loras: int,
        slots_policy: EvictionPolicy,
        host_policy: EvictionPolicy,
        seed: int,
    ) -> None:
        self.max_loras = max_loras
        self.max_cpu_loras = max_cpu_loras
        self.slots: dict[str, int] = {}
        """GPU slot of each active adapter."""
        self.host_cache: set[str] = set()
        self.slots_policy = slots_policy
        self.host_policy = host_policy
        self._free_slots = list(range(max_loras))
        self._seed = seed
        self._numbers: dict[str, int] = {}
        self._names: dict[int, str] = {}

    def fill(self, host_cache: Collection[str], slots: Collection[str]) -> None:
        """Start warm, with these adapters in the empty tiers, the oldest first; each slot's is in both."""
        for adapter in host_cache:
            self._load(adapter, (), [])
        for adapter in slots:
            self._activate(adapter, (), [])

    def apply(self, adapters: Collection[str]) -> list[AdapterEvent]:
        """Bring a step's adapters, at most `max_loras`, into slots; returns what happened, in order.

        One that comes late in the order may first lose its slot, or its place in the host cache, to an
        earlier one.
        """
        events: list[AdapterEvent] = []
        order = self._application_order(adapters)
        slots, host_policy, slots_policy = self.slots, self.host_policy, self.slots_policy
        if all(map(slots.__contains__, order)):
            use_all(host_policy, order)
            use_all(slots_policy, order)
            return events
        # An activation leaves the host cache alone, so that most often its turn can come first.
        host_cache, loaded = self.host_cache, self.host_cache.issuperset(order)
        if loaded:
            use_all(host_policy, order)
        on_access = slots_policy.on_access
        for adapter in order:
            if not loaded:
                if adapter in host_cache:
                    host_policy.on_access(adapter)
                else:
                    self._load(adapter, adapters, events)
            if adapter in slots:
                on_access(adapter)
            else:
                self._activate(adapter, adapters, events)
        if not all(map(slots.__contains__, order)):
            name = getattr(slots_policy, "name", type(slots_policy).__name__)
            raise PolicyError(
                f"eviction policy {name}, or that of the host cache: gave up an adapter that was applied for "
                "the same step already"
            )
        return events

    def insert_host(self, adapter: str) -> list[AdapterEvent]:
        """Bring an adapter to the host cache, where there is room; returns what happened."""
        self.host_policy.on_miss(adapter)
        self.host_cache.add(adapter)
        self.host_policy.on_insert(adapter)
        return [AdapterEvent("load", adapter)]

    def evict_host(self, needed: Collection[str]) -> list[AdapterEvent]:
        """Make room in the host cache, with nothing of `needed`. Raises PolicyError."""
        victim = self.host_policy.victim(needed)
        if victim in needed:
            raise PolicyError(f"eviction policy of the host cache: gave up {victim}, which is in use")
        events: list[AdapterEvent] = []
        self._leave_host(victim, events)
        return events

    def repeat(self, adapters: Collection[str], num_steps: int, last_ns: int) -> None:
        """Apply the adapters of the last step, after which nothing is lacking, in further steps."""
        for policy in (self.host_policy, self.slots_policy):
            policy.on_repeat(adapters, num_steps, last_ns)

    def number(self, adapter: str) -> int:
        """The random integer, from 0 to 2**61 - 1, that an adapter's name stands for in this run."""
        number = self._numbers.get(adapter)
        if number is None:
            digest = blake2b(f"{self._seed}/{adapter}".encode(), digest_size=8).digest()
            number = self._numbers[adapter] = int.from_bytes(digest, "big") >> 3
            self._names[number] = adapter
        return number

    def _application_order(self, adapters: Collection[str]) -> list[str]:
        try:
            in_set = set(map(self._numbers.__getitem__, adapters))
        except KeyError:
            in_set = set(map(self.number, adapters))
        return list(map(self._names.__getitem__, in_set))

    def _load(self, adapter: str, needed: Collection[str], events: list[AdapterEvent]) -> None:
        events.append(AdapterEvent("load", adapter))
        self.host_policy.on_miss(adapter)
        if len(self.host_cache) >= self.max_cpu_loras:
            self._leave_host(self.host_policy.victim(needed), events)
        self.host_cache.add(adapter)
        self.host_policy.on_insert(adapter)

    def _leave_host(self, victim: str, events: list[AdapterEvent]) -> None:
        self.host_cache.remove(victim)
        self.host_policy.on_remove(victim)
        events.append(AdapterEvent("evict_host", victim))
        if victim in self.slots:
            heappush(self._free_slots, self._vacate(victim, events))

    def _activate(self, adapter: str, needed: Collection[str], events: list[AdapterEvent]) -> None:
        policy, free_slots = self.slots_policy, self._free_slots
        policy.on_miss(adapter)
        slot = heappop(free_slots) if free_slots else self._vacate(policy.victim(needed), events)
        self.slots[adapter] = slot
        policy.on_insert(adapter)
        events.append(_event(("activate", adapter, slot)))

    def _vacate(self, adapter: str, events: list[AdapterEvent]) -> int:
        """Take `adapter` out of its slot; returns the slot."""
        slot = self.slots.pop(adapter)
        self.slots_policy.on_remove(adapter)
        events.append(_event(("evict_slot", adapter, slot)))
        return slot


def use_all(policy: EvictionPolicy, adapters: Sequence[str]) -> None:
    """Tell `policy` that the adapters, which are in its tier, are used, in this order."""
    # A loop without steps of Python's: this happens for every adapter of every step.
    deque(map(policy.on_access, adapters), maxlen=0)
