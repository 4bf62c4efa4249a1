"""What a policy must not do."""

from collections.abc import Collection, Container

MOST_NAMED = 8
"""Allowed answers that a message names; a tier may hold thousands."""
MOST_SHOWN = 300
"""Characters of an answer, or of an exception's message, that a message quotes."""


class PolicyError(Exception):
    """A policy raised, answered what its protocol rules out, or lets a request starve.

    The message is one line: which policy, what it did, what is wrong with that, and what is allowed.
    """


def check_offer(
    policy: object, request: object, waiting: Container[object], offered: Container[object]
) -> None:
    """Raise PolicyError unless an admission policy that has `offered` these in a step may yield `request`."""
    waits = is_one_of(request, waiting)
    if waits and request not in offered:
        return
    what = "was offered before in this step" if waits else "does not wait"
    name = shown(getattr(request, "request_id", request))
    raise PolicyError(f"admission policy {type(policy).__name__}: candidates yielded {name}, which {what}")


def wrong_answer(policy: object, returned: object, wrong: str, allowed: Collection[object]) -> PolicyError:
    """Return the error for a policy that `returned` what it must not."""
    kind = type(policy)
    name = f"{kind.__module__}.{kind.__qualname__}"
    return PolicyError(f"{name} returned {shown(returned)}, {wrong}; allowed: {some(allowed)}")


def is_one_of(answer: object, allowed: Container[object]) -> bool:
    """Whether a policy's answer is among `allowed`. It may be anything, also what has no hash."""
    try:
        return answer in allowed
    except Exception:  # An answer's own __hash__ and __eq__ may raise whatever they like.
        return False


def shown(answer: object) -> str:
    """Return a policy's answer as a message quotes it: on one line, and not too long."""
    try:
        text = repr(answer)
    except Exception:
        text = f"a {type(answer).__name__}"
    return shortened(text)


def shortened(text: str) -> str:
    """Return `text` on one line of at most MOST_SHOWN characters."""
    line = " ".join(text.split())
    return line if len(line) <= MOST_SHOWN else f"{line[: MOST_SHOWN - 3]}..."


def some(allowed: Collection[object]) -> str:
    """Return the first MOST_NAMED of `allowed`, and how many more there are."""
    names = [repr(answer) for _, answer in zip(range(MOST_NAMED), allowed, strict=False)]
    more = len(allowed) - len(names)
    return ", ".join(names) + (f" and {more} more" if more else "")
