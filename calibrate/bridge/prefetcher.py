"""Loads off the engine's critical path: what a prefetch policy wants, brought to the host cache meanwhile."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from calibrate.bridge.adapter_check import local_folder
from calibrate.bridge.guard import Report
from calibrate.bridge.live_engine import LiveEngine
from calibrate.bridge.live_request import LiveRequest
from calibrate.bridge.loaded import Loaded, LoaderDied
from calibrate.bridge.names import AdapterNames
from calibrate.bridge.tier import LiveTier
from calibrate.bridge.waiting_queue import PolicyQueue, WaitingObserver
from policies.errors import PolicyError
from policies.prefetch import PrefetchPolicy


class Loader(Protocol):
    """Reads adapters, while the engine goes on."""

    def is_free(self) -> bool:
        """Whether `start` may be called."""
        ...

    def start(self, key: str, folder: Path) -> None:
        """Begin to load an adapter. Raises LoaderDied."""
        ...

    def poll(self) -> list[Loaded]:
        """Return what has been loaded, or has failed, since the last call. Raises LoaderDied."""
        ...


class HostCache(Protocol):
    """vLLM's host cache, as far as it is filled and emptied between two steps."""

    def make_loader(self) -> Loader:
        """Return a loader whose adapters `adopt` takes."""
        ...

    def adopt(self, lora_request: Any, loaded: Loaded) -> None:
        """Put a loaded adapter into the host cache, which has room. Raises whatever vLLM does."""
        ...

    def evict(self, key: str) -> None:
        """Take an adapter out of the host cache, and out of its slot."""
        ...


class Owner(Protocol):
    """What the prefetcher asks of the session that it belongs to."""

    @property
    def engine(self) -> LiveEngine:
        """The policies' view of the engine."""
        ...

    @property
    def host(self) -> LiveTier:
        """The host cache."""
        ...

    @property
    def names(self) -> AdapterNames:
        """Keys of adapters."""
        ...

    def problem(self, lora_request: Any) -> str | None:
        """Return why this adapter must not be loaded, if so."""
        ...

    def fail(self, key: str, problem: str) -> None:
        """End the requests for an adapter."""
        ...


class Prefetcher(WaitingObserver):
    """Follows `policies.prefetch`: the loader alone loads, and who waits for it is not offered for admission.

    As in sim.loader, one for which nobody runs or waits leaves to make room when a load begins. What was
    loaded is taken over between two steps. Should the policy or the loader fail, loads are the engine's own
    again.
    """

    def __init__(self, policy: PrefetchPolicy, owner: Owner, cache: HostCache, report: Report) -> None:
        self._policy, self._owner, self._cache, self._report = policy, owner, cache, report
        self._engine, self._host = owner.engine, owner.host
        self._loader = cache.make_loader()
        self._arrived: list[Loaded] = []
        self._coming: set[str] = set()
        self._off = False
        self._guarded(lambda: policy.bind(self._engine))

    def attach(self, queue: PolicyQueue) -> None:
        """Stand between arrivals and the policy that the queue serves."""
        self._queue = queue
        if not self._off:
            queue.observer = self
            self._host.on_entered = queue.release

    def on_arrival(self, request: LiveRequest) -> None:
        """`request` waits now."""
        self._guarded(lambda: self._policy.on_arrival(request))

    def on_departure(self, request: LiveRequest) -> None:
        """`request` waits no longer."""
        self._guarded(lambda: self._policy.on_departure(request))

    def is_ready(self, adapter: str) -> bool:
        """Whether `adapter` is in the host cache, or the engine is to load it itself: from a hub, say."""
        if self._off or adapter in self._engine.host_cache:
            return True
        return local_folder(self._owner.names.lora_request(adapter)) is None

    def advance(self) -> None:
        """Take over what has been loaded, and start the next loads."""
        if self._off:
            return
        try:
            self._arrived += self._loader.poll()
            self._take_over()
            if not self._arrived:
                self._guarded(self._start)
        except Exception as error:  # No failure here may end the engine.
            self._turn_off(error)

    def _take_over(self) -> None:
        while self._arrived:
            loaded = self._arrived[0]
            self._coming.discard(loaded.key)
            problem = loaded.error
            if problem is None and not self._make_room():
                return
            del self._arrived[0]
            if problem is None:
                try:
                    if loaded.key not in self._host.present:
                        self._host.on_miss(loaded.key)
                    self._cache.adopt(self._owner.names.lora_request(loaded.key), loaded)
                except Exception as error:  # Whatever vLLM raises about one adapter.
                    problem = f"{type(error).__name__}: {error}"
            if problem is not None:
                self._owner.fail(loaded.key, problem)

    def _start(self) -> None:
        """Give the loader what is wanted next, as much as it takes and as there is room for."""
        for key in self._policy.wanted():
            if not self._loader.is_free():
                return
            if key in self._host.present or key in self._coming:
                continue
            try:
                lora_request = self._owner.names.lora_request(key)
            except KeyError:
                raise PolicyError(f"it wants {key!r}, which nobody has asked for yet") from None
            folder, problem = local_folder(lora_request), self._owner.problem(lora_request)
            if problem is not None:
                self._owner.fail(key, problem)
            elif folder is not None:
                if not self._make_room():
                    return
                self._loader.start(key, folder)
                self._coming.add(key)

    def _make_room(self) -> bool:
        """Evict one that nobody asks for, if nothing is free beside what is coming; returns whether there is
        room.
        """
        if len(self._host.present) + len(self._coming) < self._host.capacity:
            return True
        victim = self._host.spare()
        if victim is None:
            return False
        self._cache.evict(victim)
        return True

    def _guarded(self, call: Callable[[], None]) -> None:
        if self._off:
            return
        try:
            call()
        except LoaderDied:
            raise
        except Exception as error:
            self._turn_off(error)

    def _turn_off(self, error: BaseException) -> None:
        """From here on the engine loads, as vLLM does."""
        self._off = True
        self._report("prefetch", error)
        self._host.on_entered = lambda key: None
        if hasattr(self, "_queue"):
            self._queue.release_all()
