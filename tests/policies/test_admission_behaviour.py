"""What each admission policy admits, and when, in small cases."""

from typing import Any

import pytest

from policies.admission import Drain, Fair, WeightedSize
from policies.admission.size_classes import Arrival, SizeClasses, cluster
from sim.request import Request
from tests.policies.admission_conformance import World, make_policy
from tests.policies.engine_double import MS, S


class Story(World):
    """Two slots, and requests named after their adapters: v1 asks for v, -1 for the base model."""

    def __init__(self, name: str, **parameters: Any) -> None:
        super().__init__(make_policy(name, **parameters))
        self.engine.max_num_seqs = 8

    def at(
        self, time_ms: float, arrive: str = "", finish: str = "", max_tokens: int = 10, room: int = 100
    ) -> "Story":
        """Go to a time, at which requests finish and arrive, and a step is scheduled."""
        self.engine.now_ns = round(time_ms * MS)
        for name in finish.split():
            request = next(request for request in self.engine.running if request.request_id == name)
            self.engine.running.remove(request)
            self.policy.on_finish(request)
        for name in arrive.split():
            adapter = None if name[0] == "-" else name[0]
            request = Request(name, self.engine.now_ns, 10, max_tokens, adapter=adapter)
            self.engine.waiting.append(request)
            self.policy.add(request)
        self.step(room)
        return self

    def generated(self, name: str, num_tokens: int) -> None:
        request = next(request for request in self.engine.running if request.request_id == name)
        self.engine.num_tokens[request] = num_tokens

    @property
    def events(self) -> list[tuple[float, str]]:
        """Times in ms and who was admitted then."""
        times = dict.fromkeys(time_ns for time_ns, _ in self.log)
        return [
            (time_ns / MS, " ".join(name for at_ns, name in self.log if at_ns == time_ns))
            for time_ns in times
        ]

    @property
    def next_change_ms(self) -> float | None:
        change_ns = self.policy.next_change_ns()
        return None if change_ns is None else change_ns / MS


def test_fcfs_strict_lets_nobody_overtake() -> None:
    story = Story("fcfs_strict").at(0, "v1 w1 x1 v2 -1").at(10, finish="v1").at(20, finish="w1")
    assert story.events == [(0, "v1 w1"), (10, "x1"), (20, "v2 -1")]
    assert story.next_change_ms is None


def test_time_slice_of_one_serves_until_nothing_is_left_and_then_who_waits_most() -> None:
    story = Story("time_slice", group_size=1)
    story.at(0, "v1 w1 x1 x2 -1").at(30, "v2")
    # The turn of v is over at 130 ms, which is noticed at the next tick.
    story.at(130, finish="v1 v2").at(199)
    assert story.next_change_ms == 200
    story.at(200).at(210, "x3 v3")
    assert story.events == [(0, "v1 -1"), (30, "v2"), (200, "x1 x2"), (210, "x3")]


def test_time_slice_ends_a_turn_for_who_has_waited_too_long_and_lets_it_run_dry() -> None:
    story = Story("time_slice", group_size=1, min_quantum_ms=2500)
    story.at(0, "v1").at(10, "w1 x1 x2").at(2450, "v2")
    assert story.next_change_ms == 2500
    story.at(2500, "v3").at(2600, finish="v1")
    assert story.next_change_ms is None
    # w has waited longest, though x has more requests.
    story.at(2700, finish="v2")
    assert story.events == [(0, "v1"), (2450, "v2"), (2700, "w1")]


def test_time_slice_holds_a_turn_for_min_active_but_not_against_the_timeout() -> None:
    story = Story("time_slice", group_size=1, min_active_secs=10, request_timeout_secs=4)
    story.at(0, "v1").at(100, "w1", finish="v1")
    assert story.next_change_ms == 4100
    story.at(4000).at(4100)
    assert story.events == [(0, "v1"), (4100, "w1")]


def test_time_slices_of_a_group_end_one_by_one() -> None:
    story = Story("time_slice", group_size=2)
    story.at(0, "v1 w1 x1 y1").at(50, finish="w1").at(100).at(1999)
    # x took the turn of w, and y waits. The oldest turn is that of v.
    assert story.next_change_ms == 2000
    story.at(2000, "v2 x2").at(2150, finish="v1").at(2160, "y2")
    assert story.events == [(0, "v1 w1"), (100, "x1"), (2000, "x2"), (2150, "y1"), (2160, "y2")]


def test_time_slices_do_not_depend_on_when_ticks_are_noticed() -> None:
    asked, unasked = Story("time_slice", group_size=1), Story("time_slice", group_size=1)
    for story in (asked, unasked):
        story.at(0, "v1").at(10, "w1", finish="v1")
    asked.at(100)
    for story in (asked, unasked):
        story.at(150, "x1 x2")
    assert unasked.log[-1][1] == asked.log[-1][1] == "w1"


def test_adapter_cycle_exchanges_what_is_not_in_use() -> None:
    story = Story("adapter_cycle").at(0, "v1 w1 x1 y1 v2 -1").at(1000, finish="v1")
    # The places of v and w are over time at 2 s, but in use. That of v is given to x as soon as it is idle.
    assert story.next_change_ms == 2000
    story.at(2000, "w2").at(2500, finish="v2").at(2600, "w3 x2 v3")
    assert story.events == [(0, "v1 w1 v2 -1"), (2000, "w2"), (2500, "x1"), (2600, "x2 w3")]
    story.at(2700, finish="w1 w2 w3").at(2800, finish="y1").at(2900)
    assert story.events[4:] == [(2700, "y1"), (2800, "v3")]


def test_adapter_cycle_exchanges_the_oldest_place_when_its_time_is_over() -> None:
    story = Story("adapter_cycle").at(0, "v1 w1 x1 y1", room=0).at(1999, room=0)
    assert story.next_change_ms == 2000
    # Nobody could be admitted: v and w have lost their places to x and y.
    story.at(2000)
    assert story.events == [(2000, "x1 y1")]


def test_drain_lets_the_adapter_with_least_to_do_make_room() -> None:
    story = Story("drain").at(0, "v1", max_tokens=100).at(0, "w1", max_tokens=50).at(1000, "x1 y1")
    assert story.next_change_ms == 4000 + 1e-6
    story.at(4000, "w2", max_tokens=50)
    # w starts to drain for x, and v for y. The longest of w has 50 - 10 tokens to go.
    story.generated("w1", 10)
    story.generated("w2", 10)
    story.at(4001, "w3", max_tokens=49).at(4002, "w4", max_tokens=48)
    assert story.next_change_ms == 4002
    story.generated("v1", 99)
    # v2 is too long for what v1 has to go, but w3 is not for w4.
    story.at(4003, "v2").at(4010, finish="w1 w2 w3 w4").at(4020, finish="v1")
    assert story.events[:4] == [(0, "v1 w1"), (4000, "w2"), (4002, "w4"), (4003, "w3")]
    assert story.events[4:] == [(4010, "x1"), (4020, "y1")]


def test_drain_waits_for_events_where_tokens_cannot_matter() -> None:
    story = Story("drain", max_wait_s=1).at(0, "v1 w1").at(0, "x1").at(1001, "v2", max_tokens=100)
    assert isinstance(story.policy, Drain)
    assert story.events == [(0, "v1 w1")]
    assert story.next_change_ms is None


def test_working_set_keeps_what_is_in_demand_and_groups_it() -> None:
    story = Story("working_set").at(0, "v1 w1").at(10, "x1 w2 v2 w3").at(20, "v3")
    # x waits for 5 s, and the least recently requested is w.
    assert story.next_change_ms == 5010
    story.at(5010, "w4 v4 -1").at(5020, finish="w1 w2").at(5030, finish="w3")
    assert story.events[:3] == [(0, "v1 w1"), (10, "w2 w3 v2"), (20, "v3")]
    assert story.events[3:] == [(5010, "-1 v4"), (5030, "x1")]


def test_working_set_lets_go_what_is_idle_or_not_asked_for_any_more() -> None:
    story = Story("working_set", window_s=2, max_wait_s=60).at(0, "v1 w1 x1").at(1000, "v2 y1")
    story.at(1500, finish="w1")
    # v was requested at 1 s, and x got its place at 1.5 s.
    assert story.events == [(0, "v1 w1"), (1000, "v2"), (1500, "x1")]
    assert story.next_change_ms == 3000
    story.at(3000, "v3 x2").at(3100, finish="v1 v2")
    assert story.events[3:] == [(3000, "x2"), (3100, "y1")]


def test_weighted_size_gives_small_requests_a_lane() -> None:
    story = Story("weighted_size", first_reqs=4, max_queues=2, slo_s=1)
    story.engine.max_num_seqs = 4
    story.at(0, "v1", max_tokens=10).at(500, "w1", max_tokens=190).at(1000, "v2", max_tokens=10)
    story.at(2000, "w2", max_tokens=190)
    policy = story.policy
    assert isinstance(policy, WeightedSize)
    # Four mean requests have 440 tokens. Both classes came twice in 2 s, and a token takes 10 ms: for the
    # objective of 1 s they need 20 * 0.1 and 200 * 1.9 times the same.
    small, large = (queue.quota for queue in policy._queues)
    assert (small, large) == pytest.approx((440 * 2 / 382, 440 * 380 / 382))
    # w2 fits in the quota of the large ones, w3 does not; nothing waits for that of the small ones.
    story.at(3000, "w3 w4", max_tokens=190).at(3010, finish="v1 v2").at(3020, "v3 v4", max_tokens=10)
    assert story.events == [(0, "v1"), (500, "w1"), (1000, "v2"), (2000, "w2"), (3020, "v3")]
    story.at(3030, finish="w1").at(3040, finish="v3")
    assert story.events[5:] == [(3030, "w3"), (3040, "v4")]


def test_weighted_size_lends_what_empty_queues_leave() -> None:
    story = Story("weighted_size", first_reqs=4, max_queues=2, slo_s=1)
    story.at(0, "v1", max_tokens=10).at(0, "w1", max_tokens=20).at(0, "v2", max_tokens=10)
    story.at(0, "w2", max_tokens=20)
    policy = story.policy
    assert isinstance(policy, WeightedSize)
    small, large = (queue.quota for queue in policy._queues)
    assert small + large == pytest.approx(8 * 25)
    # The large ones have 200 * 600 / 800 tokens, and borrow some of the others.
    story.at(10, "w3 w4 w5 w6 w7", max_tokens=20)
    assert story.events == [(0, "v1 w1 v2 w2"), (10, "w3 w4 w5")]


def test_weighted_size_lets_others_bypass_as_long_as_they_do_not_delay() -> None:
    # Before any has finished, a token is taken for a step of 10 ms: v1 ends at 1 s, w1 at 2 s.
    story = Story("weighted_size").at(0, "v1", max_tokens=100).at(0, "w1", max_tokens=200).at(100, "x1")
    story.at(200, "v2", max_tokens=80).at(201, "w2", max_tokens=80).at(500, "v3", max_tokens=40)
    story.at(510, "v4", max_tokens=10, room=0)
    story.at(900.001).at(910, finish="v1").at(920, finish="v2 v3").at(930)
    assert story.events == [(0, "v1 w1"), (200, "v2"), (500, "v3"), (920, "x1 w2")]


def test_sizes_are_clustered_and_bounded_half_way() -> None:
    assert cluster([1, 1, 2, 10, 11, 30], 3) == pytest.approx([4 / 3, 10.5, 30])
    assert cluster([5, 5, 5], 4) == [5]
    arrivals = [Arrival(0, 100, tokens, size) for tokens, size in ((10, 4), (10, 8), (100, 8), (100, None))]
    classes = SizeClasses.of(arrivals, 4, 0.4, 0.6)
    sizes = [0.5 * (0.4 + 0.06), 0.4 + 0.06, 1, 1]
    assert [classes.size(arrival) for arrival in arrivals] == pytest.approx(sizes)
    assert classes.bounds == pytest.approx([(sizes[0] + sizes[1]) / 2, (sizes[1] + 1) / 2])
    assert [classes.number(arrival) for arrival in arrivals] == [0, 1, 2, 2]


def test_fair_serves_first_who_has_been_served_least() -> None:
    story = Story("fair")
    story.at(0, "v1 v2 v3 w1 w2")
    # Each is charged 10 + 2 * 10: v and w take turns. Then v has paid 90 and w 60.
    assert story.events == [(0, "v1 w1 v2 w2 v3")]
    for name in ("v1", "v2", "v3", "w1", "w2"):
        story.generated(name, 10)
    story.at(10, "v4 v5 w3", finish="v1 v2 v3 w1 w2", room=0)
    # w began to wait when v did, so that it is lifted to 90. v goes on first, as the first that came ever.
    story.at(20, room=1).at(30, room=1).at(40, room=1)
    assert story.events[1:] == [(20, "v4"), (30, "w3"), (40, "v5")]


def test_fair_lets_slots_run_dry_for_who_is_too_far_behind() -> None:
    story = Story("fair", max_lead_tokens=59).at(0, "v1 w1").at(10, "x1 v2 v3 v4 w2")
    # v and w have paid 30; x is lifted to that, and they may go on up to 89.
    assert story.events == [(0, "v1 w1"), (10, "v2 w2 v3")]
    for name in ("v1", "v2", "v3", "w1", "w2"):
        story.generated(name, 10)
    story.at(20, finish="v1 v2 v3").at(30, finish="w1 w2")
    assert story.events[2:] == [(20, "x1"), (30, "v4")]


def test_fair_predicts_output_from_what_came_before() -> None:
    story = Story("fair", history_reqs=2)
    policy = story.policy
    assert isinstance(policy, Fair)
    for number, generated in enumerate((10, 2, 4)):
        story.at(number, f"v{number}")
        story.generated(f"v{number}", generated)
        story.at(number, finish=f"v{number}")
    assert policy._counters["v"][0] == 3 * 10 + 2 * (10 + 2 + 4)
    story.at(5, "v5")
    assert policy._counters["v"][0] == 4 * 10 + 2 * (10 + 2 + 4) + 2 * 3


def test_credit_owes_a_slot_to_who_was_overtaken_often_enough() -> None:
    # An activation takes 10 steps, and 0.3 may overtake for each.
    story = Story("credit", overtakings_per_step=0.3)
    story.engine.host_cache = ("x",)
    story.at(0, "v1 w1 x1").at(10, "v2 w2 -1").at(20, "v3").at(30, "v4 w3")
    assert story.events == [(0, "v1 w1"), (10, "v2 w2 -1"), (20, "v3"), (30, "w3")]
    # v has overtaken twice and w once: v is closed.
    story.at(40, finish="v1 v2").at(50, "w4", finish="v3").at(60, finish="w1 w2 w3 w4")
    assert story.events[4:] == [(50, "x1 w4"), (60, "v4")]


def test_credit_waits_longer_for_what_must_be_loaded() -> None:
    story = Story("credit", overtakings_per_step=0.02)
    story.at(0, "v1 w1 x1").at(10, "v2 v3").at(20, "v4 v5")
    # A load and an activation take 110 steps, and ceil(2.2) may overtake.
    assert story.events == [(0, "v1 w1"), (10, "v2 v3"), (20, "v4")]


def wait_of_a_cold_adapter_s(name: str, limit_s: int) -> float:
    """How long a request waits for a slot where two hot adapters have all, and more requests than room."""
    story = Story(name)
    engine, policy = story.engine, story.policy
    cold = Request("x1", 1 * S, 10, 10, adapter="x", priority=1)
    arriving = ["v", "w"] * 10
    while engine.now_ns < limit_s * S:
        new = [Request(f"{engine.now_ns}", engine.now_ns, 10, 10, adapter=adapter) for adapter in arriving]
        for request in [*new, cold] if engine.now_ns == cold.arrival_ns else new:
            engine.waiting.append(request)
            policy.add(request)
        story.step(engine.max_num_seqs - len(engine.running))
        if cold in engine.running:
            return (engine.now_ns - cold.arrival_ns) / S
        engine.now_ns += 100 * MS
        finishing = engine.running[:2]
        arriving = [request.adapter for request in finishing if request.adapter is not None]
        for request in finishing:
            engine.num_tokens[request] = 10
            engine.running.remove(request)
            policy.on_finish(request)
    return float("inf")


@pytest.mark.parametrize(
    ("name", "most_s"),
    [
        ("fcfs_strict", 1),
        ("time_slice", 4),
        ("working_set", 7),
        ("weighted_size", 5),
        ("fair", 28),
        ("credit", 90),
    ],
)
def test_a_cold_adapter_gets_a_slot_though_hot_ones_never_pause(name: str, most_s: float) -> None:
    assert wait_of_a_cold_adapter_s(name, 200) <= most_s


@pytest.mark.parametrize("name", ["fcfs_skip", "priority", "adapter_cycle", "drain"])
def test_where_hot_adapters_keep_their_slots_for_ever(name: str) -> None:
    assert wait_of_a_cold_adapter_s(name, 60) == float("inf")


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("time_slice", {"group_size": 0}, "group_size=0: expected a whole number of 1 or more"),
        ("time_slice", {"tick_interval_ms": 0}, "tick_interval_ms=0: expected a number above 0"),
        (
            "adapter_cycle",
            {"adapter_cycle_time_s": "2 s"},
            "='2 s': expected a number above 0",
        ),
        ("drain", {"tolerance": -1}, "tolerance=-1: expected a number at least 0"),
        ("working_set", {"max_wait_s": 0}, "max_wait_s=0: expected a number above 0"),
        ("weighted_size", {"max_queues": 1.5}, "max_queues=1.5: expected a whole number of 1 or more"),
        ("fair", {"input_price": True}, "input_price=True: expected a number at least 0"),
        (
            "credit",
            {"overtakings_per_step": float("nan")},
            "=nan: expected a number at least 0",
        ),
    ],
)
def test_bad_parameters_are_refused(name: str, parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(Exception, match=message):
        make_policy(name, **parameters)


def test_a_turn_without_a_slot_has_to_wait() -> None:
    story = Story("time_slice", group_size=3).at(0, "v1 w1 x1 -1").at(10, finish="v1")
    assert story.events == [(0, "v1 w1 -1"), (10, "x1")]


def test_amortize_takes_what_is_at_hand_and_brings_in_an_adapter_a_step_most_requests_first() -> None:
    story = Story("amortize", ttft_ms=1000, max_wait_s=5)
    story.engine.slots, story.engine.host_cache, story.engine.max_loras = {"v"}, {"v", "w", "x"}, 4
    # y is to be loaded, 1,100 ms for two; w and x are in the host cache, 100 ms for one and for three.
    story.at(0, "y1 w1 y2 x1 x2 x3 v1 -1")
    assert story.next_change_ms == 0
    story.at(10).at(20)
    assert story.next_change_ms is None
    assert story.events == [(0, "v1 -1 x1 x2 x3"), (10, "w1"), (20, "y1 y2")]


def test_amortize_lets_the_late_give_way_but_not_for_ever() -> None:
    story = Story("amortize", ttft_ms=1000, max_wait_s=5)
    story.at(0, "v1").at(1, "w1").at(10, "x1 y1")
    assert story.next_change_ms == 1010 + 1e-6
    # Both are late when v's slot becomes free, and z is not.
    story.at(2000, "z1", finish="v1").at(3000, finish="w1").at(4000, "-1")
    assert story.events == [(0, "v1"), (1, "w1"), (2000, "z1"), (3000, "x1"), (4000, "-1")]
    # y has waited too long: the first adapter of the batch takes nobody more until there is a slot for it.
    story.at(5011, "z2 x2").at(5020, "z3", finish="z1")
    assert story.events[5:] == [(5011, "x2"), (5020, "y1")]
