"""What the watches over policies have in common: whose fault it is, and who has waited for too long."""

from collections.abc import Iterator
from typing import Any

from policies.errors import PolicyError, shortened, shown
from sim.request import Request

CHECK_EVERY_NS = 1_000_000_000
"""How often somebody is looked for who starves."""


class Watch:
    """Calls a policy's methods, and names it when they fail."""

    def __init__(self, policy: Any, group: str) -> None:
        self.policy = policy
        self.name = f"{group} policy {type(policy).__name__}"

    def error(self, method: str, error: BaseException) -> PolicyError:
        """Return what to raise for what the method has raised."""
        if isinstance(error, PolicyError):
            return error
        # SystemExit too, which would end the program with a status of the policy's choice, and no result.
        if isinstance(error, KeyboardInterrupt):
            raise error
        return PolicyError(f"{self.name}: {method} raised {type(error).__name__}: {shortened(str(error))}")

    def call(self, method: str, *args: Any) -> Any:
        """Return what the method returns."""
        try:
            return getattr(self.policy, method)(*args)
        except BaseException as error:
            raise self.error(method, error) from error

    def each(self, method: str, *args: Any) -> Iterator[Any]:
        """Yield what the method yields, or what is in the collection that it returns."""
        answer = self.call(method, *args)
        try:
            iterator = iter(answer)
        except TypeError:
            raise self.wrong(method, answer, "an iterator") from None
        while True:
            try:
                item = next(iterator)
            except StopIteration:
                return
            except BaseException as error:
                raise self.error(method, error) from error
            yield item

    def next_change_ns(self) -> int | None:
        """Return when the policy says that it might answer something else."""
        answer = self.call("next_change_ns")
        if answer is not None and type(answer) is not int:
            raise self.wrong("next_change_ns", answer, "a whole number, or None")
        return answer

    def wrong(self, method: str, answer: object, expected: str) -> PolicyError:
        """Return what to raise for an answer that is not what is expected."""
        return PolicyError(f"{self.name}: {method} returned {shown(answer)}; expected {expected}")


class Patience:
    """Since when each request waits, and which of them have waited for longer than `starvation_ns`."""

    def __init__(self, name: str, starvation_ns: int) -> None:
        self._name = name
        self._starvation_ns = starvation_ns
        self._since_ns: dict[Request, int] = {}
        """In order of that."""
        self._next_check_ns = 0

    def begin(self, request: Request, now_ns: int) -> None:
        """`request` waits from now on."""
        self._since_ns[request] = now_ns

    def end(self, request: Request) -> None:
        """`request` waits no longer."""
        del self._since_ns[request]

    def overdue(self, now_ns: int) -> Iterator[Request]:
        """Yield who has waited for too long, the longest first; nobody, where that was asked just now."""
        if now_ns < self._next_check_ns:
            return
        self._next_check_ns = now_ns + CHECK_EVERY_NS
        for request, since_ns in self._since_ns.items():
            if now_ns - since_ns <= self._starvation_ns:
                return
            yield request

    def earliest_ns(self, change_ns: int | None) -> int | None:
        """Return `change_ns`, or when `overdue` should be asked because of those who wait now, if earlier."""
        first_ns = next(iter(self._since_ns.values()), None)
        if first_ns is None:
            return change_ns
        starved_ns = max(first_ns + self._starvation_ns + 1, self._next_check_ns)
        return starved_ns if change_ns is None else min(change_ns, starved_ns)

    def lost(self, request: Request, now_ns: int, why: str) -> PolicyError:
        """Return what to raise for one who has waited in vain."""
        return PolicyError(
            f"{self._name}: {request.request_id} (adapter {request.adapter}) has waited for "
            f"{(now_ns - self._since_ns[request]) / 1e9:.1f} s {why}; "
            f"starvation_s={self._starvation_ns / 1e9:g}"
        )

    def __contains__(self, request: object) -> bool:
        return request in self._since_ns

    def __len__(self) -> int:
        return len(self._since_ns)
