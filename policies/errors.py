"""What a policy must not do."""

from collections.abc import Collection, Container

MOST_NAMED = 8
"""Allowed answers that a message names; a tier may hold thousands."""


class PolicyError(Exception):
    """A policy raised, answered what its protocol rules out, or lets a request starve.

    The message is one line: which policy, what it did, what is wrong with that, and what is allowed.
    """


def check_offer(
    policy: object, request: object, waiting: Container[object], offered: Container[object]
) -> None:
    """Raise PolicyError unless an admission policy that has `offered` these in a step may yield `request`."""
    if request in waiting and request not in offered:
        return
    what = "was offered before in this step" if request in offered else "does not wait"
    name = getattr(request, "request_id", request)
    raise PolicyError(f"admission policy {type(policy).__name__}: candidates yielded {name!r}, which {what}")


def wrong_answer(policy: object, returned: object, wrong: str, allowed: Collection[object]) -> PolicyError:
    """Return the error for a policy that `returned` what it must not."""
    kind = type(policy)
    name = f"{kind.__module__}.{kind.__qualname__}"
    return PolicyError(f"{name} returned {returned!r}, {wrong}; allowed: {_some(allowed)}")


def _some(allowed: Collection[object]) -> str:
    names = [repr(answer) for _, answer in zip(range(MOST_NAMED), allowed, strict=False)]
    more = len(allowed) - len(names)
    return ", ".join(names) + (f" and {more} more" if more else "")
