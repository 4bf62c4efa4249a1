"""What a policy must not do."""

from collections.abc import Collection

MOST_NAMED = 8
"""Allowed answers that a message names; a tier may hold thousands."""


class PolicyError(Exception):
    """A policy answered what its protocol rules out.

    The message is one line: which policy, what it returned, what is wrong with that, and what is allowed.
    """

    def __init__(self, policy: object, returned: object, wrong: str, allowed: Collection[object]) -> None:
        kind = type(policy)
        super().__init__(
            f"{kind.__module__}.{kind.__qualname__} returned {returned!r}, {wrong}; allowed: {_some(allowed)}"
        )


def _some(allowed: Collection[object]) -> str:
    names = [repr(answer) for _, answer in zip(range(MOST_NAMED), allowed, strict=False)]
    more = len(allowed) - len(names)
    return ", ".join(names) + (f" and {more} more" if more else "")
