"""What policies see and may do in the bridge, without vLLM: views, costs, tiers, prefetch."""

import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from calibrate.bridge.adapter_file import AdapterError
from calibrate.bridge.costs import AdapterSizes, expected_costs
from calibrate.bridge.guard import GuardedAdmission, GuardedEviction
from calibrate.bridge.live_engine import LiveEngine
from calibrate.bridge.live_request import LiveRequest
from calibrate.bridge.loaded import Loaded
from calibrate.bridge.names import AdapterNames
from calibrate.bridge.prefetcher import Prefetcher
from calibrate.bridge.step_log import StepLog
from calibrate.bridge.tier import LiveTier
from calibrate.bridge.waiting_queue import PolicyQueue
from policies.admission import FcfsSkip
from policies.eviction import Lru
from policies.view import Costs
from sim.config import EngineConfig
from sim.errors import UserError
from tests.conformance.odd_policies import InOrderOfArrival

CONFIG = EngineConfig(max_loras=2, max_cpu_loras=3, max_num_seqs=4, num_gpu_blocks=10)
PROFILE = yaml.safe_load(Path("conf/profile/h100_llama_3_1_8b.yaml").read_text())


SIZES = AdapterSizes(rank=lambda key: 16, bytes_per_rank=100.0)


def profile_costs(settings: Any = PROFILE, host_cache: Collection[str] = ("a", "b", "c")) -> Costs:
    return expected_costs(settings, CONFIG, SIZES, host_cache)


def no_report(what: str, error: BaseException) -> None:
    raise error


def test_costs_are_the_means_of_the_profile() -> None:
    costs = profile_costs()
    load, scale = PROFILE["swaps"]["load_recycled"], PROFILE["host_scale"]
    expected = (load["constant_ms"] + 16 * load["rank_ms"]) * scale["load"]
    assert 0.9 < costs.load_ns("a") / (expected * 1e6) < 1.1, "but for the mean of the spread"
    assert profile_costs(host_cache=()).load_ns("a") != costs.load_ns("a"), "a cache that still grows"
    assert 5e6 < costs.activate_ns("a") < 30e6
    assert 7e6 < costs.step_ns(2, 2) < costs.step_ns(4, 2) < costs.step_ns(4, 2, 500) < 200e6
    assert costs.size_bytes("a") == 1600
    assert profile_costs({"kind": "constant", "step_ms": 3}).step_ns(4, 2) == 3_000_000
    with pytest.raises(UserError, match="expected constant or fitted"):
        profile_costs({})


@dataclass(eq=False)
class EnginesRequest:
    """Stands for one of vLLM's."""

    id: str
    live: LiveRequest
    runs: bool = False
    num_output_tokens: int = 0


class Board:
    """Everything of a session but vLLM: `submit`, `step` (one admission pass), and a loader by hand."""

    def __init__(self, tmp_path: Path, prefetch: Any = None) -> None:
        self.now_ns = 0
        self.engine = LiveEngine(CONFIG, lambda cache: profile_costs(PROFILE, cache), lambda: self.now_ns)
        admission: GuardedAdmission = GuardedAdmission(FcfsSkip(), FcfsSkip, no_report)
        admission.bind(self.engine)
        self.running: list[Any] = []
        self.log = StepLog(lambda: len(self.running), CONFIG.max_num_seqs, 100)
        self.queue = PolicyQueue(
            admission, self.engine, self.log, lambda request: request.live, lambda request: request.runs
        )
        guarded = GuardedEviction(Lru(), "host cache", no_report)
        self.host = LiveTier(self.engine, 3, self.engine.host_cache, self.engine.costs.load_ns, guarded)
        self.names, self.failed = AdapterNames(), dict[str, str]()
        self.problem: Callable[[Any], str | None] = lambda lora_request: None
        self.fail = self.failed.__setitem__
        self.tmp_path, self.jobs, self.done = tmp_path, list[str](), list[Loaded]()
        self.prefetcher = None
        if prefetch is not None:
            self.prefetcher = Prefetcher(prefetch, self, self, no_report)
            self.prefetcher.attach(self.queue)

    def make_loader(self) -> Any:
        return SimpleNamespace(
            is_free=lambda: len(self.jobs) == 0,
            start=lambda key, folder: self.jobs.append(key),
            poll=self.poll,
        )

    def poll(self) -> list[Loaded]:
        done, self.done = self.done, []
        return done

    def finish_load(self, error: str | None = None) -> None:
        self.done.append(Loaded(self.jobs.pop(), 0, error=error))

    def adopt(self, lora_request: Any, loaded: Loaded) -> None:
        if lora_request.lora_name == "unfit":
            raise AdapterError("it does not fit the model")
        self.host.on_insert(loaded.key)

    def evict(self, key: str) -> None:
        self.host.on_remove(key)

    def submit(self, request_id: str, adapter: str) -> Any:
        lora = SimpleNamespace(
            lora_name=adapter,
            lora_int_id=sum(map(ord, adapter)),
            lora_path=str(self.tmp_path),
            tensorizer_config_dict=None,
        )
        live = LiveRequest(None, request_id, self.now_ns, 0, self.names.key(lora), 5, 5)
        request = live.request = EnginesRequest(request_id, live)
        self.queue.add_request(request)
        return request

    def step(self) -> list[str]:
        if self.prefetcher is not None:
            self.prefetcher.advance()
        self.log.begin_step()
        self.log.requests = list(self.running)
        self.queue.begin_step()
        admitted = []
        while self.queue:
            if self.log.is_full():
                break
            request = self.queue.pop_request()
            request.runs = True
            self.running.append(request)
            admitted.append(request.id)
        self.queue.end_step()
        return admitted

    def finish(self, request: Any) -> None:
        self.running.remove(request)
        self.queue.leave(request)


def test_the_view_counts_who_waits_and_who_runs(tmp_path: Path) -> None:
    board = Board(tmp_path)
    first, second = board.submit("first", "a"), board.submit("second", "a")
    assert board.engine.num_waiting("a") == 2 and board.engine.num_running("a") == 0
    assert board.step() == ["first", "second"]
    assert list(board.engine.running) == [first.live, second.live] and board.engine.num_running("a") == 2
    first.num_output_tokens = 3
    assert board.engine.num_output_tokens(first.live) == 3
    board.queue.prepend_request(second)
    assert board.engine.num_waiting("a") == board.engine.num_running("a") == 1
    board.finish(first)
    board.queue.remove_request(second)
    assert not board.engine.num_waiting("a") and not board.engine.num_running("a") and not len(board.queue)
    assert board.engine.next_arrival_ns("a") == math.inf


def test_a_tier_answers_from_the_engine(tmp_path: Path) -> None:
    board = Board(tmp_path)
    board.now_ns = 5
    board.host.on_insert("a")
    assert board.host.next_use_ns("a") == math.inf and board.host.cost_ns("a") > 1e6
    board.submit("first", "a")
    assert board.host.next_use_ns("a") == 5 and board.host.num_waiting("a") == 1
    assert list(board.engine.host_cache) == ["a"]


def test_a_request_waits_for_its_adapter_and_nobody_else_does(tmp_path: Path) -> None:
    board = Board(tmp_path, InOrderOfArrival())
    board.submit("first", "a")
    board.submit("second", "b")
    assert board.step() == [] and board.jobs == ["a"]
    board.finish_load()
    assert board.step() == ["first"] and board.jobs == ["b"]
    assert board.step() == [] and len(board.queue) == 1
    board.finish_load()
    assert board.step() == ["second"] and board.jobs == []


def test_who_runs_and_what_was_loaded_for_somebody_stays(tmp_path: Path) -> None:
    board = Board(tmp_path, InOrderOfArrival())
    requests = {name: board.submit(name, name) for name in "abcd"}
    for _ in "abc":
        board.step()
        board.finish_load()
    assert board.step() == [], "max_loras adapters run"
    assert sorted(board.engine.host_cache) == ["a", "b", "c"] and board.jobs == [], "no room for d"
    board.finish(requests["a"])
    assert board.step() == ["c"] and board.jobs == ["d"]
    board.finish_load()
    board.step()
    assert sorted(board.engine.host_cache) == ["b", "c", "d"]
    board.finish(requests["b"])
    assert board.step() == ["d"]


def test_what_nobody_asks_for_makes_room_though_it_was_used_last(tmp_path: Path) -> None:
    board = Board(tmp_path, InOrderOfArrival())
    for name in "ab":
        board.submit(name, name)
        board.step()
        board.finish_load()
    board.step()
    board.host.on_insert("x")
    board.submit("c", "c")
    board.step()
    assert sorted(board.engine.host_cache) == ["a", "b"] and board.jobs == ["c"], "a and b run"


@pytest.mark.parametrize("unfit", [False, True])
def test_what_cannot_be_loaded_fails(tmp_path: Path, unfit: bool) -> None:
    board = Board(tmp_path, InOrderOfArrival())
    adapter = "unfit" if unfit else "bad"
    board.submit("first", adapter)
    board.step()
    board.finish_load(error=None if unfit else "cut off")
    board.step()
    assert board.failed == {adapter: "AdapterError: it does not fit the model" if unfit else "cut off"}


def test_an_adapter_that_nobody_has_asked_for_is_an_error_of_the_policy(tmp_path: Path) -> None:
    class WantsMore(InOrderOfArrival):
        def wanted(self) -> Iterator[str]:
            yield "unheard-of"

    with pytest.raises(Exception, match="nobody has asked for"):
        Board(tmp_path, WantsMore()).step()


@pytest.mark.parametrize(
    ("offers", "what"),
    [(["gone"], "'gone', which does not wait"), (["first", "first"], "'first', which was offered before")],
)
def test_wrong_offers_are_named_and_vllms_order_takes_over(offers: list[str], what: str) -> None:
    """Whoever waits is offered after all: by vLLM's own queue."""
    requests = {name: LiveRequest(None, name, 0, 0, None, 5, 5) for name in ("first", "second", "gone")}

    class Wrong(FcfsSkip[Any]):
        def candidates(self, view: Any) -> Iterator[Any]:
            yield from (requests[name] for name in offers)

    reported: list[tuple[str, BaseException]] = []
    admission = GuardedAdmission(Wrong(), FcfsSkip, lambda *told: reported.append(told))
    admission.bind(LiveEngine(CONFIG, lambda cache: profile_costs()))
    for name in ("first", "second"):
        admission.add(requests[name])
    view: Any = SimpleNamespace(scheduled_loras=set(), max_loras=2)
    candidates = admission.candidates(view)
    while not reported:
        assert next(candidates) is requests["first"]
    admission.admit(requests["first"])
    assert next(candidates) is requests["second"]
    ((policy, error),) = reported
    assert policy == "admission"
    assert str(error).startswith(f"admission policy Wrong: candidates yielded {what}")


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("c", "returned 'c', which is not in the tier; allowed: 'a', 'b'"),
        ("a", "returned 'a', which the same step brought in or used; allowed: 'b'"),
    ],
)
def test_wrong_victims_are_named_and_vllm_chooses(answer: str, message: str) -> None:
    class Wrong(Lru):
        def victim(self, needed: Collection[str]) -> str:
            return answer

    reported: list[tuple[str, BaseException]] = []
    eviction = GuardedEviction(Wrong(), "host cache", lambda *told: reported.append(told))
    assert eviction.victim(["a"], present=["a", "b"], used=["a"]) is None
    ((policy, error),) = reported
    assert policy == "eviction of the host cache"
    assert str(error).endswith(message)
    assert eviction.victim(["a"], present=["a", "b"], used=["a"]) is None
    assert len(reported) == 1
