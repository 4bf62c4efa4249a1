"""What every admission policy has to keep to: a mixin that its test class inherits."""

from collections.abc import Iterable
from copy import deepcopy
from functools import cache
from importlib.resources import files
from typing import Any, ClassVar

import pytest
from hydra.utils import get_object, instantiate
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from policies.admission import AdmissionPolicy, AdmissionView
from sim.request import Request
from tests.policies.engine_double import MS, EngineDouble, S
from tests.policies.parameter_conformance import assert_refuses_bad_parameters

Operation = tuple[str, int, int]
ADAPTERS = (None, "v", "w", "x", "y", "z")
WAITS_NS = (0, 1, 10 * MS, 250 * MS, 2 * S, 7 * S)


@cache
def _settings_of(name: str, max_loras: int) -> dict[str, Any]:
    engine = {"max_loras": max_loras, "scheduling_policy": "fcfs"}
    config = OmegaConf.load(str(files("conf.admission") / f"{name}.yaml"))
    resolved: Any = OmegaConf.to_container(OmegaConf.create({"engine": engine, "it": config}), resolve=True)
    return resolved["it"]  # type: ignore[no-any-return]


def make_policy(name: str, max_loras: int = 2, **parameters: Any) -> AdmissionPolicy[Request]:
    """Return the policy of conf/admission/<name>.yaml."""
    policy: AdmissionPolicy[Request] = instantiate(_settings_of(name, max_loras) | parameters)
    return policy


class World:
    """An engine with one policy, on which operations are done one by one. `log` has all that is admitted.

    With `curious` it asks for candidates more often, where the policy says that nothing has changed.
    """

    def __init__(self, policy: AdmissionPolicy[Request], *, curious: bool = False) -> None:
        self.policy, self.curious = policy, curious
        self.engine = EngineDouble()
        self.requests: list[Request] = []
        self.log: list[tuple[int, str]] = []
        policy.bind(self.engine)

    def do(self, operation: Operation) -> None:
        kind, first, second = operation
        getattr(self, f"_{kind}")(first, second)
        assert len(self.policy) == len(self.engine.waiting)

    def _arrive(self, adapter: int, size: int) -> None:
        now_ns, name = self.engine.now_ns, f"r{len(self.requests)}"
        request = Request(
            name, now_ns, 3 * size, size, adapter=ADAPTERS[adapter % len(ADAPTERS)], priority=size % 3
        )
        self.requests.append(request)
        self.engine.waiting.append(request)
        self.policy.add(request)

    def _step(self, room: int, unloaded: int) -> None:
        self.step(room, ADAPTERS[unloaded] if unloaded < len(ADAPTERS) else None)

    def step(self, room: int, unloaded: str | None = None) -> list[str]:
        """Schedule as sim.scheduler does; `unloaded` is an adapter whose requests are passed over."""
        engine, policy = self.engine, self.policy
        scheduled = {request.adapter: None for request in engine.running if request.adapter is not None}
        view = AdmissionView(engine.max_loras, scheduled)
        seen: set[Request] = set()
        admitted: list[str] = []
        for request in policy.candidates(view):
            assert request in engine.waiting
            assert request not in seen
            seen.add(request)
            if not room:
                break
            if not view.accepts(request.adapter) or (unloaded is not None and request.adapter == unloaded):
                continue
            policy.admit(request)
            engine.waiting.remove(request)
            engine.running.append(request)
            admitted.append(request.request_id)
            if request.adapter is not None:
                scheduled[request.adapter] = None
            room -= 1
        self.log += [(engine.now_ns, name) for name in admitted]
        return admitted

    def _wait(self, index: int, tokens: int) -> None:
        """Let time pass, in which all that runs generates tokens."""
        self.step(0)
        engine, begin_ns, change_ns = self.engine, self.engine.now_ns, self.policy.next_change_ns()
        end_ns = begin_ns + WAITS_NS[index % len(WAITS_NS)]
        for third in (1, 2) if self.curious else ():
            engine.now_ns = begin_ns + (end_ns - begin_ns) * third // 3
            if change_ns is None or engine.now_ns < change_ns:
                self.step(0)
        engine.now_ns = end_ns
        for request in engine.running:
            known = engine.num_output_tokens(request)
            engine.num_tokens[request] = min(known + tokens, request.max_tokens)

    def _finish(self, index: int, _: int) -> None:
        if self.engine.running:
            request = self.engine.running.pop(index % len(self.engine.running))
            self.policy.on_finish(request)

    def _preempt(self, index: int, _: int) -> None:
        if self.engine.running:
            request = self.engine.running.pop(index % len(self.engine.running))
            self.engine.waiting.append(request)
            self.policy.requeue(request)

    def _abort(self, index: int, _: int) -> None:
        if self.engine.waiting:
            request = self.engine.waiting.pop(index % len(self.engine.waiting))
            self.policy.remove(request)

    def drain(self) -> None:
        """Let everything that is here run and finish, with room for everything."""
        engine = self.engine
        for _ in range(20 * len(self.requests) + 20):
            if not engine.waiting:
                return
            if self.step(engine.max_num_seqs) or engine.running:
                while engine.running:
                    self.do(("finish", 0, 0))
                engine.now_ns += 10 * MS
            else:
                change_ns = self.policy.next_change_ns()
                assert change_ns is not None, "nothing runs, some wait, and nothing will ever change"
                engine.now_ns = max(change_ns, engine.now_ns + 10 * MS)
        raise AssertionError(f"still waiting: {[request.request_id for request in engine.waiting]}")


def operations() -> st.SearchStrategy[list[Operation]]:
    small = st.integers(0, 9)
    kinds = ["arrive", "arrive", "arrive", "step", "step", "wait", "finish", "finish", "preempt", "abort"]
    sizes = st.integers(1, 9)
    return st.lists(st.tuples(st.sampled_from(kinds), small, sizes), min_size=10, max_size=60)


def cases(number: int) -> settings:
    # A test that several classes inherit is not called by one of them alone.
    return settings(
        deadline=None, max_examples=number, suppress_health_check=[HealthCheck.differing_executors]
    )


class AdmissionConformance:
    """A subclass gives the name of a file in conf/admission, and parameters that differ from it."""

    name: ClassVar[str]
    parameters: ClassVar[dict[str, Any]]

    def __init_subclass__(cls, *, name: str, **parameters: Any) -> None:
        cls.name, cls.parameters = name, parameters

    def world(self, operations: Iterable[Operation] = (), *, curious: bool = False) -> World:
        world = World(make_policy(self.name, **self.parameters), curious=curious)
        for operation in operations:
            world.do(operation)
        return world

    @cases(12)
    @given(operations())
    def test_everything_is_admitted_or_removed_exactly_once(self, operations: list[Operation]) -> None:
        world = self.world(operations)
        world.drain()
        assert not len(world.policy)
        assert list(world.policy.candidates(AdmissionView(2, {}))) == []
        admitted = [name for _, name in world.log]
        preempted = [operation for operation in operations if operation[0] == "preempt"]
        assert len(admitted) - len(set(admitted)) <= len(preempted)

    @cases(12)
    @given(operations(), st.floats(0, 1), st.integers(0, 5))
    def test_nothing_changes_before_next_change_ns(
        self, operations: list[Operation], when: float, tokens: int
    ) -> None:
        world = self.world(operations)
        world.step(0)
        now_ns, change_ns = world.engine.now_ns, world.policy.next_change_ns()
        later_ns = now_ns + round(
            when * ((now_ns + 600 * S if change_ns is None else change_ns - 1) - now_ns)
        )
        if later_ns < now_ns:
            return
        later = deepcopy(world)
        later.engine.now_ns = later_ns
        if later_ns > now_ns:
            for request in later.engine.running:
                later.engine.num_tokens[request] = later.engine.num_output_tokens(request) + tokens
        assert later.step(100) == world.step(100)

    @cases(12)
    @given(operations())
    def test_it_does_not_matter_how_often_it_is_asked(self, operations: list[Operation]) -> None:
        world, curious = self.world(operations), self.world(operations, curious=True)
        world.drain()
        curious.drain()
        assert curious.log == world.log

    @cases(12)
    @given(operations(), st.integers(0, 9), st.integers(1, 9))
    def test_who_does_not_overtake_is_tried_last(
        self, operations: list[Operation], adapter: int, size: int
    ) -> None:
        world = self.world(operations)
        world.step(0)
        later = deepcopy(world)
        later.do(("arrive", adapter, size))
        if not later.policy.overtakes(later.requests[-1]):
            before = world.step(100)
            assert later.step(100)[: len(before)] == before

    @cases(3)
    @given(operations())
    def test_the_same_again(self, operations: list[Operation]) -> None:
        assert self.world(operations).log == self.world(operations).log

    def test_what_is_no_value_for_a_parameter_is_refused_by_name(self) -> None:
        section = _settings_of(self.name, 2)
        given = {name: value for name, value in section.items() if name != "_target_"}
        assert_refuses_bad_parameters(get_object(section["_target_"]), **given | self.parameters)

    def test_a_request_that_does_not_wait_cannot_be_removed(self) -> None:
        with pytest.raises(KeyError):
            self.world().policy.remove(Request("r", 0, 1, 1))

    def test_a_request_can_be_admitted_as_soon_as_it_is_alone(self) -> None:
        for adapter in (0, 1):
            world = self.world([("arrive", adapter, 5)])
            assert world.step(1) == ["r0"]
