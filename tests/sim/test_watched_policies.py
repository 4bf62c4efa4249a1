"""A policy of any group that raises, answers nonsense or lets a request starve is named, with the step."""

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from policies.admission import FcfsSkip
from policies.eviction import KeyOrder
from policies.prefetch import QueuePrefetch
from policies.routing import RoundRobin
from sim.errors import DoesNotFit, UserError
from sim.policy.objects import PROTOCOLS, policy
from sim.simulation import simulate
from tests.sim.test_policy_runs import BUSY, SMALL, config

STEP = r" \(step \d+(, \d+)?, \d+\.\d{6} s\)$"


class Unprintable:
    """An answer that cannot even be compared or quoted."""

    def __hash__(self) -> int:
        raise RuntimeError("no hash")

    def __repr__(self) -> str:
        raise RuntimeError("no text")


ANSWERS: dict[str, Callable[[], Any]] = {
    "exception": lambda: 1 / 0,
    "several lines": lambda: exec("raise RuntimeError('one\\ntwo')"),
    "exit": lambda: exec("raise SystemExit(0)"),
    "none": lambda: None,
    "number": lambda: 42,
    "list": lambda: ["x"],
    "unprintable": Unprintable,
    "long": lambda: "x" * 10_000,
}


class Admission(FcfsSkip[Any]):
    """Offers what it must not, in a list, or as its answer."""

    def __init__(self, answer: str, how: str) -> None:
        super().__init__()
        self._answer, self._how = ANSWERS[answer], how

    def candidates(self, view: Any) -> Any:
        return [self._answer()] if self._how == "in a list" else self._answer()


class ListedAdmission(FcfsSkip[Any]):
    """Offers its candidates in a list, which is as good as an iterator."""

    def candidates(self, view: Any) -> Any:
        return [request for request in super().candidates(view) if view.accepts(request.adapter)]

    def __len__(self) -> int:
        return -1  # noqa: PLE0303, that is the point


class Eviction(KeyOrder):
    """Gives up what is not there."""

    def __init__(self, answer: str) -> None:
        super().__init__()
        self._answer = ANSWERS[answer]

    def on_access(self, key: str) -> None:
        self._order.move_to_end(key)

    def victim(self, needed: Any) -> Any:
        return self._answer()


class Prefetch(QueuePrefetch):
    """Wants what there is not, in a list, or as its answer."""

    def __init__(self, answer: str, how: str) -> None:
        super().__init__()
        self._answer, self._how = ANSWERS[answer], how

    def wanted(self) -> Any:
        return [self._answer()] if self._how == "in a list" else self._answer()


class Routing(RoundRobin):
    """Chooses what is no replica."""

    def __init__(self, answer: str) -> None:
        super().__init__()
        self._answer = ANSWERS[answer]

    def route(self, request: Any, replicas: Any) -> Any:
        return self._answer()


def named(group: str, **arguments: Any) -> str:
    """The error of a run with a policy of this module."""
    return refused(**{group: {"_target_": f"{__name__}.{group.capitalize()}", **arguments}})


def refused(**policies: Any) -> str:
    with pytest.raises(UserError) as raised:
        simulate(config(BUSY, SMALL, **policies))
    assert not isinstance(raised.value, DoesNotFit)
    (line,) = str(raised.value).splitlines()
    return line


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize(
    ("group", "how"),
    [
        ("admission", {"how": "alone"}),
        ("admission", {"how": "in a list"}),
        ("eviction", {}),
        ("prefetch", {"how": "alone"}),
        ("prefetch", {"how": "in a list"}),
        ("routing", {}),
    ],
)
def test_whatever_a_policy_answers_it_is_named_with_the_step(group: str, how: Any, answer: str) -> None:
    replicas = {"replicas": 2} if group == "routing" else {}
    section = {"_target_": f"{__name__}.{group.capitalize()}", "answer": answer, **how}
    line = refused(**{group: section}, **replicas)
    assert group.capitalize() in line
    if answer == "exit":
        assert "raised SystemExit: 0" in line
    assert len(line) < 700
    assert re.search(STEP, line), line


@pytest.mark.parametrize(
    ("group", "arguments", "message"),
    [
        ("admission", {"answer": "number", "how": "alone"}, "candidates returned 42; expected an iterator"),
        ("admission", {"answer": "none", "how": "in a list"}, "candidates yielded None, which does not wait"),
        ("admission", {"answer": "several lines", "how": "alone"}, "raised RuntimeError: one two (step 0"),
        ("eviction", {"answer": "list"}, "Eviction returned ['x'], which is not in the tier; allowed: 'adap"),
        ("eviction", {"answer": "unprintable"}, "Eviction returned a Unprintable, which is not in the tier"),
        ("prefetch", {"answer": "exception", "how": "alone"}, "prefetch policy Prefetch: wanted raised Zero"),
        ("prefetch", {"answer": "none", "how": "alone"}, "wanted returned None; expected an iterator"),
        (
            "prefetch",
            {"answer": "number", "how": "in a list"},
            "wanted yielded 42, which is no adapter",
        ),
        (
            "prefetch",
            {"answer": "list", "how": "alone"},
            "yielded 'x', which is no adapter of this run",
        ),
    ],
)
def test_the_message_says_what_would_be_accepted(group: str, arguments: Any, message: str) -> None:
    assert message in named(group, **arguments)


def test_a_list_of_candidates_will_do_and_a_wrong_length_harms_nobody() -> None:
    summary = simulate(config(BUSY, SMALL, admission={"_target_": f"{__name__}.ListedAdmission"})).summary
    assert summary["counts"]["completed"] == BUSY["num_requests"]


class FailsIn:
    """Fails in one of its methods."""

    def __init__(self, method: str) -> None:
        def fail(*args: Any) -> Any:
            raise LookupError(f"in {method}")

        setattr(self, method, fail)


class FailingAdmission(FailsIn, FcfsSkip[Any]):
    """An admission policy that does."""

    def __init__(self, method: str) -> None:
        FcfsSkip.__init__(self)
        super().__init__(method)


class FailingEviction(FailsIn, KeyOrder):
    """An eviction policy that does."""

    def __init__(self, method: str) -> None:
        KeyOrder.__init__(self)
        super().__init__(method)

    def on_access(self, key: str) -> None:
        self._order.move_to_end(key)

    def victim(self, needed: Any) -> str:
        return next(self._dispensable(needed))


class FailingPrefetch(FailsIn, QueuePrefetch):
    """A prefetch policy that does."""

    def __init__(self, method: str) -> None:
        QueuePrefetch.__init__(self)
        super().__init__(method)


class FailingRouting(FailsIn, RoundRobin):
    """A routing policy that does."""

    def __init__(self, method: str) -> None:
        RoundRobin.__init__(self)
        super().__init__(method)


METHODS = [
    *[("admission", name) for name in ("bind", "add", "candidates", "admit", "on_finish", "next_change_ns")],
    *[("eviction", name) for name in ("bind", "on_miss", "on_insert", "on_access", "on_remove", "victim")],
    *[("eviction", "on_repeat")],
    *[("prefetch", name) for name in ("bind", "on_arrival", "on_departure", "wanted", "next_change_ns")],
    *[("routing", "route")],
]


@pytest.mark.parametrize(("group", "method"), METHODS)
def test_a_policy_that_raises_is_named_with_the_step(group: str, method: str) -> None:
    """From the first call to the last, before the run begins too."""
    section = {"_target_": f"{__name__}.Failing{group.capitalize()}", "method": method}
    line = refused(**{group: section}, **({"replicas": 2} if group == "routing" else {}))
    assert f"{group} policy Failing{group.capitalize()}: {method} raised LookupError: in {method}" in line
    assert re.search(STEP, line), line


class WantsNothing(QueuePrefetch):
    """Wants nothing, and so nobody is ever served."""

    def wanted(self) -> Iterator[str]:
        return iter(())


class WantsOthers(QueuePrefetch):
    """Wants all but what is waited for."""

    def wanted(self) -> Iterator[str]:
        everything = (f"adapter-{number:04d}" for number in range(12))
        return (name for name in everything if name not in self._num_waiting)


class WantsForEver(QueuePrefetch):
    """Comes to no end once it has begun."""

    def wanted(self) -> Iterator[str]:
        while self._num_waiting:
            yield next(iter(self._num_waiting))


class WrongTime(QueuePrefetch):
    """Does not know what a time is."""

    def next_change_ns(self) -> Any:
        return 0.5


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "WantsNothing",
            "while the loader had nothing to do and there was room; starvation_s=2",
        ),
        ("WantsOthers", "is wanted, for which nobody waits; starvation_s=2"),
        ("WantsForEver", "wanted yields without an end; there are 12 adapters and"),
        ("WrongTime", "next_change_ns returned 0.5; expected a whole number, or None"),
    ],
)
def test_a_prefetch_policy_serves_what_waits(name: str, message: str) -> None:
    line = refused(prefetch={"_target_": f"{__name__}.{name}"}, starvation_s=2)
    assert message in line
    assert f"prefetch policy {name}: " in line


@pytest.mark.parametrize("group", PROTOCOLS)
def test_an_object_without_the_methods_is_refused_before_the_run(group: str) -> None:
    with pytest.raises(UserError, match=rf"^{group}: builtins.dict: has no .*; expected the methods of "):
        policy({"_target_": "builtins.dict"}, group)


def exits() -> None:
    raise SystemExit(0)


def test_a_policy_that_exits_when_it_is_made_is_named() -> None:
    with pytest.raises(UserError, match=r"^admission: .*exits: raised SystemExit: 0$"):
        policy({"_target_": f"{__name__}.exits"}, "admission")
