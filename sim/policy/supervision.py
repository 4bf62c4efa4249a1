"""Policies under watch: what they raise, return and leave undone becomes a PolicyError that names them."""

from collections.abc import Collection, Iterator
from typing import Any

from policies.admission import AdmissionPolicy, AdmissionView
from policies.errors import PolicyError, check_offer, wrong_answer
from policies.eviction import EvictionPolicy, TierView
from policies.view import EngineView
from sim.request import Request

CHECK_EVERY_NS = 1_000_000_000
"""How often somebody is looked for who starves."""


class Watch:
    """Calls a policy's methods, and names it when they fail."""

    def __init__(self, policy: Any, group: str) -> None:
        self.policy = policy
        self.name = f"{group} policy {type(policy).__name__}"

    def error(self, method: str, error: Exception) -> PolicyError:
        """Return what to raise for what the method has raised."""
        if isinstance(error, PolicyError):
            return error
        return PolicyError(f"{self.name}: {method} raised {type(error).__name__}: {error}")

    def call(self, method: str, *args: Any) -> Any:
        """Return what the method returns."""
        try:
            return getattr(self.policy, method)(*args)
        except Exception as error:
            raise self.error(method, error) from error


class WatchedAdmission(AdmissionPolicy[Request]):
    """An admission policy that offers only what waits, and lets nobody wait over `starvation_ns` who would
    have fitted in the step.
    """

    def __init__(self, policy: AdmissionPolicy[Request], starvation_ns: int) -> None:
        self._watch = Watch(policy, "admission")
        self._starvation_ns = starvation_ns
        self._waiting: dict[Request, int] = {}
        """Since when, in order of that."""
        self._engine: EngineView | None = None
        self._next_check_ns = 0

    def bind(self, engine: EngineView) -> None:
        """Pass it on."""
        self._engine = engine
        self._watch.call("bind", engine)

    def add(self, request: Request) -> None:
        """Take note."""
        self._waiting[request] = self._now_ns
        self._watch.call("add", request)

    def requeue(self, request: Request) -> None:
        """Take note."""
        self._waiting[request] = self._now_ns
        self._watch.call("requeue", request)

    def overtakes(self, request: Request) -> bool:
        """Pass it on."""
        return bool(self._watch.call("overtakes", request))

    def remove(self, request: Request) -> None:
        """Take note."""
        del self._waiting[request]
        self._watch.call("remove", request)

    def candidates(self, view: AdmissionView) -> Iterator[Request]:
        """Pass on what waits, each request once. Who asks on after the last has room for more."""
        offered: set[Request] = set()
        offers = self._watch.call("candidates", view)
        while True:
            try:
                request = next(offers, None)
            except Exception as error:
                raise self._watch.error("candidates", error) from error
            if request is None:
                break
            check_offer(self._watch.policy, request, self._waiting, offered)
            offered.add(request)
            yield request
        if self._now_ns >= self._next_check_ns:
            self._check_nobody_starves(view)

    def admit(self, request: Request) -> None:
        """Take note."""
        del self._waiting[request]
        self._watch.call("admit", request)

    def on_finish(self, request: Request) -> None:
        """Pass it on."""
        self._watch.call("on_finish", request)

    def next_change_ns(self) -> int | None:
        """As the policy says, and when the first of those who wait now would starve."""
        change_ns: int | None = self._watch.call("next_change_ns")
        if change_ns is not None and type(change_ns) is not int:
            raise PolicyError(
                f"{self._watch.name}: next_change_ns returned {change_ns!r}; expected a whole number, or None"
            )
        first = next(iter(self._waiting.values()), None)
        if first is None:
            return change_ns
        starved_ns = max(first + self._starvation_ns + 1, self._next_check_ns)
        return starved_ns if change_ns is None else min(change_ns, starved_ns)

    def __len__(self) -> int:
        return int(self._watch.call("__len__"))

    @property
    def _now_ns(self) -> int:
        return 0 if self._engine is None else self._engine.now_ns

    def _check_nobody_starves(self, view: AdmissionView) -> None:
        now_ns = self._now_ns
        self._next_check_ns = now_ns + CHECK_EVERY_NS
        for request, since_ns in self._waiting.items():
            if now_ns - since_ns <= self._starvation_ns:
                return
            if view.accepts(request.adapter):
                raise PolicyError(
                    f"{self._watch.name}: {request.request_id} (adapter {request.adapter}) has waited for "
                    f"{(now_ns - since_ns) / 1e9:.1f} s while there was room for it; "
                    f"starvation_s={self._starvation_ns / 1e9:g}"
                )


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
        if key not in self._keys:
            raise wrong_answer(self._watch.policy, key, "which is not in the tier", self._keys)
        return key
