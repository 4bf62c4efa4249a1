"""Each eviction policy: what all must do, and its own idea by hand."""

import csv
import subprocess
import sys
from collections.abc import Callable
from importlib import resources
from inspect import signature
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import yaml
from hydra.utils import instantiate

import conf
import policies.eviction
from policies.eviction import (
    POLICIES,
    Arc,
    Belady,
    Chameleon,
    EvictionPolicy,
    Gdsf,
    Lru,
    QueueAware,
    S3Fifo,
    WorkingSet,
    replay,
)
from tests.policies.eviction_conformance import STEP_NS, EvictionConformance, Tier, steps_of


def victims(policy: EvictionPolicy, capacity: int, steps: str, **tier_class: Any) -> str:
    tier = make_tier(policy, capacity, **tier_class)
    for step in steps_of(steps):
        tier.step(step)
    return "".join(tier.victims)


def make_tier(policy: EvictionPolicy, capacity: int, **methods: Callable[[Tier, str], float]) -> Tier:
    """A tier that answers some questions in a way of its own."""
    return type("OwnTier", (Tier,), methods)(policy, capacity)  # type: ignore[no-any-return]


class TestLru(EvictionConformance):
    name, spares = "lru", False

    def test_the_least_recent_goes_even_when_the_step_needs_it(self) -> None:
        tier = Tier(Lru(), 2, spares=False)
        tier.step(["a"])
        tier.step(["b"])
        tier.step(["c", "a"])
        assert tier.victims == ["a", "b"]


class Told(Lru):
    """Writes down what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[str] = []

    def on_access(self, key: str) -> None:
        self.told.append(f"access {key}")
        super().on_access(key)

    def on_insert(self, key: str) -> None:
        self.told.append(f"insert {key}")
        super().on_insert(key)

    def on_remove(self, key: str) -> None:
        self.told.append(f"remove {key}")
        super().on_remove(key)


def test_what_is_derived_from_lru_is_told_all_that_lru_is() -> None:
    policy = Told()
    assert victims(policy, 2, "a ab c") == victims(Lru(), 2, "a ab c") == "a"
    assert policy.told == ["insert a", "access a", "insert b", "remove a", "insert c"]


class TestLruThatProtectsTheBatch(EvictionConformance):
    name = "lru"

    def make(self) -> EvictionPolicy:
        return Lru(protect_batch=True)

    def test_the_least_recent_that_the_step_does_not_need_goes(self) -> None:
        assert victims(Lru(protect_batch=True), 2, "a b ca") == "b"


class TestFifo(EvictionConformance):
    name = "fifo"

    def test_use_does_not_save_the_oldest(self) -> None:
        assert victims(POLICIES["fifo"](), 3, "a b c a a d e") == "ab"


class TestLfu(EvictionConformance):
    name = "lfu"

    def test_the_least_used_goes_and_of_several_the_least_recent(self) -> None:
        assert victims(POLICIES["lfu"](), 3, "a a b c d e") == "bc"

    def test_uses_are_forgotten_when_a_key_leaves(self) -> None:
        tier = Tier(POLICIES["lfu"](), 2)
        for step in steps_of("a a a b"):
            tier.step(step)
        tier.leave("a")
        for step in steps_of("a b c"):
            tier.step(step)
        assert tier.victims == ["a"]


class TestGdsf(EvictionConformance):
    name = "gdsf"

    def test_the_cheapest_to_bring_back_goes(self) -> None:
        costs = {"a": 9, "b": 2, "c": 5, "d": 100}
        steps = "a b c d d d e"
        assert victims(Gdsf(), 4, steps, cost_ns=lambda _, key: costs.get(key, 1), size_bytes=one) == "b"

    def test_the_largest_goes_where_costs_are_equal(self) -> None:
        sizes = {"a": 1, "b": 3, "c": 2}
        assert victims(Gdsf(), 3, "a b c d", cost_ns=one, size_bytes=lambda _, key: sizes.get(key, 1)) == "b"

    def test_what_was_used_much_long_ago_ages(self) -> None:
        steps = "a a a " + " ".join("bcdefg")
        assert "a" in victims(Gdsf(), 2, steps, cost_ns=one, size_bytes=one)
        assert "a" not in victims(POLICIES["lfu"](), 2, steps)


class TestS3Fifo(EvictionConformance):
    name = "s3fifo"

    def test_what_is_used_once_leaves_the_small_queue_early(self) -> None:
        hot = [f"hot{number}" for number in range(9)]
        once = [f"once{number}" for number in range(30)]
        assert all(replay("s3fifo", 10, hot * 4 + once + hot)[-9:])
        assert not any(replay("lru", 10, hot * 4 + once + hot)[-9:])

    def test_what_comes_back_soon_enters_the_main_queue(self) -> None:
        references = [*"abcdefghij", "k", "a", *"lmnopq", "a"]
        assert replay("s3fifo", 10, references)[-1]

    def test_what_the_step_needs_is_passed_over_in_the_small_queue(self) -> None:
        policy = S3Fifo(small_size_ratio=0.3)
        assert victims(policy, 10, "a b c d e f g h i j ak") == "b"

    def test_where_the_step_needs_the_whole_main_queue_the_small_one_gives_up(self) -> None:
        assert victims(S3Fifo(small_size_ratio=0.5), 4, "a b c d e a cdaf") == "abe"

    def test_the_main_queue_lets_a_key_go_when_all_were_used_often(self) -> None:
        policy = S3Fifo(small_size_ratio=0.34)
        assert victims(policy, 3, "a b c d a " + 5 * "b c a " + "e") == "adb"

    def test_a_newcomer_enters_the_small_queue_though_the_tier_is_not_full_any_more(self) -> None:
        tier = Tier(S3Fifo(small_size_ratio=0.5), 4)
        for step in steps_of("a b c d e"):
            tier.step(step)
        tier.leave("c")
        for step in steps_of("f g h i"):
            tier.step(step)
        assert tier.victims == ["a", "b", "e", "f"]

    @pytest.mark.parametrize(
        ("parameters", "message"),
        [
            ({"small_size_ratio": 0}, "small_size_ratio=0: expected a number above 0 and below 1"),
            ({"ghost_size_ratio": -1}, "ghost_size_ratio=-1: expected a number at least 0"),
            (
                {"move_to_main_threshold": -1},
                "move_to_main_threshold=-1: expected a whole number of 0 or more",
            ),
        ],
    )
    def test_impossible_parameters_are_named(self, parameters: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=f"^{message}$"):
            S3Fifo(**parameters)


class TestArc(EvictionConformance):
    name = "arc"

    def test_a_scan_does_not_evict_what_was_used_twice(self) -> None:
        assert victims(Arc(), 4, "a a b b c d e f g h") == "cdef"

    def test_a_miss_on_a_recent_victim_gives_its_kind_more_room(self) -> None:
        assert victims(Arc(), 3, "a a b b c d") == "c"
        assert victims(Arc(), 3, "a a b b c d c e") == "cab"

    def test_memory_of_victims_is_as_large_as_the_tier(self) -> None:
        policy = Arc()
        replay(policy, 5, [number % 40 if number % 3 else number % 4 for number in range(2000)])
        queues = (policy._once, policy._often, policy._once_before, policy._often_before)
        assert sum(map(len, queues)) <= 10


class TestChameleon(EvictionConformance):
    name = "chameleon"

    @pytest.mark.parametrize(
        ("weights", "victim"), [((1, 0, 0), "b"), ((0, 1, 0), "a"), ((0, 0, 1), "c")], ids=str
    )
    def test_each_weight_alone(self, weights: tuple[float, float, float], victim: str) -> None:
        sizes = {"a": 3, "b": 2, "c": 1}
        steps = "a a a b c c d"
        assert victims(Chameleon(*weights), 3, steps, size_bytes=lambda _, key: sizes.get(key, 9)) == victim

    def test_the_weighted_sum_decides(self) -> None:
        sizes = {"a": 2, "b": 1, "c": 2}
        # 0.45 x (3/3 + 2/2) + 0.1 x 0, 0.45 x (2/3 + 1/2) + 0.1 x 2/4, 0.45 x (1/3 + 2/2) + 0.1 x 3/4
        steps = "a a a b b c d"
        assert victims(Chameleon(), 3, steps, size_bytes=lambda _, key: sizes.get(key, 1)) == "b"

    def test_a_negative_weight_is_named(self) -> None:
        with pytest.raises(ValueError, match=r"^recency_weight=-0.1: expected a number at least 0$"):
            Chameleon(recency_weight=-0.1)


class TestChameleonByRecencyAlone(EvictionConformance):
    """Its weight is too small by default for a wrong time to show."""

    name = "chameleon"

    def make(self) -> EvictionPolicy:
        return Chameleon(frequency_weight=0, recency_weight=1, size_weight=0)


class TestWorkingSet(EvictionConformance):
    name = "working_set"

    def test_the_least_recent_outside_the_window_goes(self) -> None:
        for window, victim in ((2, "b"), (2.9, "b"), (3, "c")):
            assert victims(WorkingSet(window_s=window * STEP_NS / 1e9), 3, "a b c a d") == victim

    def test_where_all_were_used_within_it_the_last_that_came_goes(self) -> None:
        policy = WorkingSet(window_s=100 * STEP_NS / 1e9)
        assert victims(policy, 3, "a b c a d e") == "cd"

    def test_so_part_of_a_loop_that_does_not_fit_is_hit(self) -> None:
        loop = list(range(40)) * 10
        assert sum(replay(WorkingSet(window_s=1), 32, loop)) == 31 * 9
        assert not any(replay("lru", 32, loop))

    def test_a_window_of_nothing_is_named(self) -> None:
        with pytest.raises(ValueError, match=r"^window_s=0: expected a number above 0$"):
            WorkingSet(window_s=0)


class TestQueueAware(EvictionConformance):
    name = "queue_aware"

    def test_the_least_recent_for_which_nobody_waits_goes(self) -> None:
        waiting = {"a": 1, "b": 0, "c": 0}
        steps = "a b c d"
        assert victims(QueueAware(), 3, steps, num_waiting=lambda _, key: waiting.get(key, 0)) == "b"

    def test_where_somebody_waits_for_each_the_one_with_the_fewest_goes(self) -> None:
        waiting = {"a": 3, "b": 1, "c": 1}
        assert victims(QueueAware(), 3, "a b c d", num_waiting=lambda _, key: waiting.get(key, 1)) == "b"


class TestBelady(EvictionConformance):
    name = "belady"

    def test_what_is_asked_for_last_goes_and_of_several_the_least_recent(self) -> None:
        never = float("inf")
        uses = {"a": 7, "b": never, "c": never}
        assert victims(Belady(), 3, "a b c d", next_use_ns=lambda _, key: uses.get(key, 0)) == "b"


def one(_: Tier, key: str) -> int:
    return 1


def configs() -> dict[str, Any]:
    folder = resources.files(conf) / "eviction"
    files = [Path(str(file)) for file in folder.iterdir() if file.name.endswith(".yaml")]
    return {file.stem: yaml.safe_load(file.read_text()) for file in files}


def test_every_policy_has_a_config_and_a_conformance_test() -> None:
    tested = {subclass.name for subclass in EvictionConformance.__subclasses__()}
    modules = {file.stem for file in Path(sys.modules[Lru.__module__].__file__ or "").parent.glob("*.py")}
    helpers = {"__init__", "engine_tier", "key_order", "names", "protocol", "replay"}
    assert set(configs()) == set(POLICIES) == tested == modules - helpers


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_a_config_makes_the_policy_with_its_defaults(name: str) -> None:
    """So that a name means the same in ``eviction=`` and in `replay`."""
    config, made = configs()[name], instantiate(configs()[name])
    assert type(made) is POLICIES[name]
    assert made.__module__ == f"policies.eviction.{name}"
    defaults = {parameter.name: parameter.default for parameter in signature(type(made)).parameters.values()}
    assert config == defaults | {"_target_": f"policies.eviction.{type(made).__name__}"}


def test_victims_do_not_depend_on_pythons_hash_seed() -> None:
    code = (
        "from policies.eviction import POLICIES, replay\n"
        "references = [str(n * n % 97) for n in range(1500)]\n"
        "print([[int(hit) for hit in replay(name, 20, references)] for name in POLICIES])"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, check=True
        )
        for seed in ("1", "2")
    ]
    assert runs[0].stdout == runs[1].stdout != b""


def test_the_policy_of_the_documentation_runs_outside_of_this_tree(tmp_path: Path) -> None:
    """The class is taken from the text of policies/eviction/__init__.py."""
    written = dedent((policies.eviction.__doc__ or "").split("::\n\n")[1].split("\n\nThe YAML file")[0])
    (tmp_path / "my_policies.py").write_text(written)
    (tmp_path / "my_conf" / "eviction").mkdir(parents=True)
    (tmp_path / "my_conf" / "eviction" / "mru.yaml").write_text("_target_: my_policies.Mru\n")
    words = ["--config-dir", "my_conf", "eviction=lru,mru", "profile=constant", "workload.duration_s=20"]
    done = subprocess.run(
        [sys.executable, "-m", "sim", "-m", *words, "hydra.sweep.dir=out"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    with (tmp_path / "out" / "sweep.csv").open(newline="") as file:
        rows = {row["eviction"]: row for row in csv.DictReader(file)}
    assert {row["status"] for row in rows.values()} == {"ok"}
    assert rows["lru"]["adapter_loads"] != rows["mru"]["adapter_loads"]
