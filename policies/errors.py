"""What a policy must not do."""

from collections.abc import Collection

MOST_NAMED = 8
"""Allowed answers that a message names; a tier may hold thousands."""


class PolicyError(Exception):
    """A policy raised, answered what its protocol rules out, or lets a request starve.

    The message is one line: which policy, what it did, what is wrong with that, and what is allowed.
    """


def wrong_answer(policy: object, returned: object, wrong: str, allowed: Collection[object]) -> PolicyError:
    """Return the error for a policy that `returned` what it must not."""
    kind = type(policy)
    name = f"{kind.__module__}.{kind.__qualname__}"
    return PolicyError(f"{name} returned {returned!r}, {wrong}; allowed: {_some(allowed)}")


def _some(allowed: Collection[object]) -> str:
    names = [repr(answer) for _, answer in zip(range(MOST_NAMED), allowed, strict=False)]
    more = len(allowed) - len(names)
    return ", ".join(names) + (f" and {more} more" if more else "")
