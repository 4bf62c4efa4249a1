"""Admission policies that no user would want, and that any difference between two engines would upset."""

import random
from collections.abc import Collection, Iterator
from typing import Any, ClassVar

from policies.admission import AdmissionView
from policies.admission.protocol import R


class Waiting:
    """What they have in common: who waits, in order of arrival."""

    def __init__(self) -> None:
        self.waiting: dict[R, None] = {}  # type: ignore[valid-type]
        self.finished: list[R] = []  # type: ignore[valid-type]

    def bind(self, engine: object) -> None:
        self.engine = engine

    def add(self, request: R) -> None:
        self.waiting[request] = None

    def requeue(self, request: R) -> None:
        self.waiting[request] = None

    def overtakes(self, request: R) -> bool:
        return True

    def remove(self, request: R) -> None:
        del self.waiting[request]

    def admit(self, request: R) -> None:
        del self.waiting[request]

    def candidates(self, view: AdmissionView) -> Iterator[R]:
        yield from list(self.waiting)

    def on_finish(self, request: R) -> None:
        self.finished.append(request)

    def next_change_ns(self) -> int | None:
        return 0

    def __len__(self) -> int:
        return len(self.waiting)


class Shuffled(Waiting):
    """Draws the order and whom to hold back anew for each step, and again after each admission."""

    def __init__(self, seed: int, hold_back: float) -> None:
        super().__init__()
        self._rng, self._hold_back = random.Random(seed), hold_back

    def candidates(self, view: AdmissionView) -> Iterator[R]:
        line = sorted(self.waiting, key=lambda request: request.request_id)
        self._rng.shuffle(line)
        for request in line:
            if self._rng.random() < self._hold_back:
                continue
            if self._rng.random() < 0.2 or view.accepts(request.adapter):
                yield request
                if request not in self.waiting and self._rng.random() < 0.1:
                    return


class OneAdapterAtATime(Waiting):
    """Serves one adapter for ten steps, the newest request first, and then the next."""

    def __init__(self) -> None:
        super().__init__()
        self._step = 0

    def candidates(self, view: AdmissionView) -> Iterator[R]:
        self._step += 1
        adapters = sorted({request.adapter or "" for request in self.waiting})
        chosen = adapters[self._step // 10 % len(adapters)]
        yield from [request for request in reversed(self.waiting) if (request.adapter or "") == chosen]


class TooFull(Waiting):
    """Fails in one of its methods, or answers what it must not, once it has been asked often enough."""

    def __init__(self, kind: str, after: int) -> None:
        super().__init__()
        self._kind, self._left, self._gone = kind, after, []  # type: ignore[var-annotated]

    def _count(self, kind: str) -> bool:
        self._left -= kind == self._kind
        return kind == self._kind and self._left <= 0

    def bind(self, engine: object) -> None:
        if self._count("bind"):
            raise RuntimeError("bind")

    def add(self, request: R) -> None:
        if self._count("add"):
            raise RuntimeError("add")
        super().add(request)

    def requeue(self, request: R) -> None:
        if self._count("requeue"):
            raise RuntimeError("requeue")
        super().requeue(request)

    def remove(self, request: R) -> None:
        if self._count("remove"):
            raise RuntimeError("remove")
        super().remove(request)

    def admit(self, request: R) -> None:
        if self._count("admit"):
            raise RuntimeError("admit")
        super().admit(request)
        self._gone.append(request)

    def on_finish(self, request: R) -> None:
        if self._count("on_finish"):
            raise RuntimeError("on_finish")

    def candidates(self, view: AdmissionView) -> Iterator[R]:
        if self._count("candidates"):
            raise RuntimeError("candidates")
        for request in list(self.waiting):
            yield request
            if self._count("mid_step"):
                raise RuntimeError("mid_step")
            if self._count("again") and request in self.waiting:
                yield request
            if self._count("gone") and self._gone:
                yield self._gone[0]
            if self._count("nonsense"):
                yield 42  # type: ignore[misc]

    def next_change_ns(self) -> int | None:
        return None


class Silent(Waiting):
    """Offers nobody, ever."""

    def candidates(self, view: AdmissionView) -> Iterator[R]:
        return iter(())

    def next_change_ns(self) -> int | None:
        return None


class AnyVictim:
    """Gives up any key that the step does not need, and writes down all that it is told."""

    logs: ClassVar[list[list[Any]]] = []
    """Of each instance, in order of birth."""

    def __init__(self, seed: int) -> None:
        self.log: list[Any] = []
        self.logs.append(self.log)
        self._rng, self._present = random.Random(seed), set[str]()

    def bind(self, tier: Any) -> None:
        self.tier = tier

    def on_miss(self, key: str) -> None:
        self.log.append(["miss", key])

    def on_insert(self, key: str) -> None:
        self.log.append(["insert", key])
        self._present.add(key)

    def on_access(self, key: str) -> None:
        self.log.append(["access", key])

    def on_repeat(self, keys: Collection[str], num_steps: int, last_ns: int) -> None:
        raise AssertionError

    def on_remove(self, key: str) -> None:
        self.log.append(["remove", key])
        self._present.remove(key)

    def victim(self, needed: Collection[str]) -> str:
        self.log.append(["victim", sorted(needed)])
        return self._rng.choice(sorted(self._present - set(needed)))


class BadVictim(AnyVictim):
    """Fails, or gives up what it must not, once it has been asked often enough."""

    def __init__(self, kind: str, after: int) -> None:
        super().__init__(after)
        self._kind, self._left = kind, after

    def _is_due(self, kind: str) -> bool:
        self._left -= kind == self._kind
        return kind == self._kind and self._left <= 0

    def on_access(self, key: str) -> None:
        if self._is_due("on_access"):
            raise RuntimeError("on_access")
        self._last = key

    def on_remove(self, key: str) -> None:
        super().on_remove(key)
        if self._is_due("on_remove"):
            raise RuntimeError("on_remove")

    def victim(self, needed: Collection[str]) -> str:
        if self._is_due("victim"):
            raise RuntimeError("victim")
        if self._is_due("absent"):
            return "nobody"
        if self._is_due("used"):
            return self._last
        if self._is_due("nonsense"):
            return ["a list"]  # type: ignore[return-value]
        return super().victim(needed)


class InOrderOfArrival:
    """A prefetch policy: whatever waits, the oldest first."""

    def __init__(self) -> None:
        self._waiting: dict[Any, None] = {}

    def bind(self, engine: Any) -> None:
        self.engine = engine

    def on_arrival(self, request: Any) -> None:
        self._waiting[request] = None

    def on_departure(self, request: Any) -> None:
        del self._waiting[request]

    def wanted(self) -> Iterator[str]:
        for request in self._waiting:
            if request.adapter is not None:
                yield request.adapter

    def next_change_ns(self) -> int | None:
        return None


class FailsToWant(InOrderOfArrival):
    """Fails when it is asked often enough."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self._left = after

    def wanted(self) -> Iterator[str]:
        self._left -= 1
        if not self._left:
            raise RuntimeError("wanted")
        return super().wanted()
