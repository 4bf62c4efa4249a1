"""Every policy in whole runs: nothing is lost, fast forward changes nothing, and who misbehaves is named."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

import conf
from policies.prefetch import QueuePrefetch
from sim.adapters import AdapterEvent, AdapterTiers
from sim.errors import UserError
from sim.simulation import run, simulate
from tests.sim.compiled_code import without_compiled_code

CONF = Path(conf.__file__).parent
PROFILE = yaml.safe_load((CONF / "profile/h100_llama_3_1_8b.yaml").read_text())
MODEL = yaml.safe_load((CONF / "model/llama_3_1_8b.yaml").read_text())
Config = dict[str, Any]


def group(name: str) -> dict[str, Config]:
    """The shipped choices of a group of policies."""
    files = sorted((CONF / name).glob("*.yaml"))
    return {file.stem: yaml.safe_load(file.read_text()) for file in files}


ADMISSION = {name: settings for name, settings in group("admission").items() if name != "vllm"}
EVICTION = group("eviction")
PREFETCH = group("prefetch")
WORKLOADS = st.fixed_dictionaries(
    {
        "mode": st.just("open"),
        "request_rate": st.sampled_from([2.0, 15.0, 60.0]),
        "num_requests": st.just(30),
        "num_adapters": st.sampled_from([3, 12]),
        "popularity": st.just({"kind": "zipf", "exponent": 0.8}),
        "input_length": st.sampled_from([5, 40, 300]),
        "output_length": st.sampled_from([1, 6, 30]),
        "abort_ms": st.sampled_from([None, 400.0]),
    }
)
ENGINES = st.fixed_dictionaries(
    {
        "max_loras": st.sampled_from([2, 4]),
        "max_cpu_loras": st.sampled_from([4, 6]),
        "max_num_seqs": st.sampled_from([3, 16]),
        "max_num_batched_tokens": st.just(256),
        "max_model_len": st.just(512),
        "num_gpu_blocks": st.sampled_from([34, 200]),
        "async_scheduling": st.booleans(),
    }
)


def config(workload: Config, engine: Config, **policies: Any) -> Config:
    """A run on the shipped profile with vLLM's policies but for those given."""
    settings_of_run = {
        "engine": engine,
        "model": MODEL,
        "workload": workload,
        "profile": PROFILE,
        "admission": {"_target_": "policies.admission.FcfsSkip"},
        "eviction": {"_target_": "policies.eviction.Lru"},
        "record": {"steps": True},
        "seed": 1,
        "warmup_s": 0,
    } | policies
    resolved = OmegaConf.to_container(OmegaConf.create(settings_of_run), resolve=True)
    assert isinstance(resolved, dict)
    return {str(key): value for key, value in resolved.items()}


def assert_fast_forward_changes_nothing(workload: Config, engine: Config, **policies: Any) -> None:
    with without_compiled_code():
        fast = simulate(config(workload, engine | {"fast_forward": True}, **policies))
    slow = simulate(config(workload, engine | {"fast_forward": False}, **policies))
    assert fast.requests.equals(slow.requests)
    assert fast.steps is not None
    assert slow.steps is not None
    assert fast.steps.equals(slow.steps)
    drop = {"config"}
    assert {k: v for k, v in fast.summary.items() if k not in drop} == {
        k: v for k, v in slow.summary.items() if k not in drop
    }
    counts = fast.summary["counts"]
    assert counts["completed"] + counts["aborted"] == counts["submitted"] == 30


few = settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.mark.parametrize("name", ADMISSION)
@few
@given(workload=WORKLOADS, engine=ENGINES)
def test_admission(name: str, workload: Config, engine: Config) -> None:
    assert_fast_forward_changes_nothing(workload, engine, admission=ADMISSION[name])


@few
@given(workload=WORKLOADS, engine=ENGINES)
def test_vllm_0_8_5_with_its_costs(workload: Config, engine: Config) -> None:
    """Each request that is passed over takes long here."""
    profile = yaml.safe_load((CONF / "profile/bsc_llama31_8b.yaml").read_text())
    profile["host"]["schedule_ms"]["passed_over"]["value"] = 1.5
    generation = {"async_scheduling": False, "cudagraph_mode": "PIECEWISE"}
    policy = {"admission": ADMISSION["vllm_0_8_5"], "profile": profile}
    assert_fast_forward_changes_nothing(workload, engine | generation, **policy)


@pytest.mark.parametrize("name", EVICTION)
@few
@given(workload=WORKLOADS, engine=ENGINES)
def test_eviction(name: str, workload: Config, engine: Config) -> None:
    assert_fast_forward_changes_nothing(workload, engine, eviction=EVICTION[name])


@pytest.mark.parametrize("name", PREFETCH)
@few
@given(workload=WORKLOADS, engine=ENGINES, eviction=st.sampled_from(sorted(EVICTION)))
def test_prefetch(name: str, workload: Config, engine: Config, eviction: str) -> None:
    assert_fast_forward_changes_nothing(
        workload, engine, prefetch=PREFETCH[name], eviction=EVICTION[eviction]
    )


@few
@given(workload=WORKLOADS, engine=ENGINES, jobs=st.sampled_from([1, 2, 5]))
def test_loads_that_are_given_between_steps(workload: Config, engine: Config, jobs: int) -> None:
    assert_fast_forward_changes_nothing(workload, engine, loader={"jobs": jobs}, prefetch=PREFETCH["queue"])


@pytest.mark.parametrize("eviction", ["lfu", "chameleon"])
def test_a_loader_does_not_outlast_the_requests(eviction: str) -> None:
    """With as many slots as entries, the most popular adapters push each other out for ever."""
    workload = BUSY | {"num_requests": 30, "popularity": {"kind": "uniform"}}
    policies = {"prefetch": PREFETCH["popular"], "eviction": EVICTION[eviction]}
    summary = simulate(config(workload, SMALL | {"max_cpu_loras": 4}, **policies)).summary
    assert summary["counts"]["completed"] == 30


@pytest.mark.parametrize("eviction", ["lfu", "working_set"])
@pytest.mark.parametrize("jobs", [None, 1, 3])
def test_loads_that_take_no_time_end(
    eviction: str, jobs: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is wanted and what is evicted never agree: adapters would push each other out at one instant."""
    loaded: list[str] = []
    insert = AdapterTiers.insert_host

    def counted(tiers: AdapterTiers, adapter: str) -> list[AdapterEvent]:
        loaded.append(adapter)
        assert len(loaded) < 5000, "loads go on for ever"
        return insert(tiers, adapter)

    monkeypatch.setattr(AdapterTiers, "insert_host", counted)
    constant = yaml.safe_load((CONF / "profile/constant.yaml").read_text())
    workload = BUSY | {"num_requests": 30, "popularity": {"kind": "uniform"}, "request_rate": 5.0}
    policies = {"prefetch": PREFETCH["popular"], "eviction": EVICTION[eviction], "loader": {"jobs": jobs}}
    summary = simulate(config(workload, SMALL, profile=constant, **policies)).summary
    assert summary["counts"]["completed"] == 30


def test_a_policy_derived_from_lru_keeps_the_host_cache_beside_a_loader_too() -> None:
    """Only vLLM's own LRU is replaced by one that spares what a step needs."""
    workload = BUSY | {"request_rate": 3.0, "num_requests": 150, "num_adapters": 40}
    loads = {
        str(host): simulate(
            config(
                workload,
                SMALL,
                prefetch=PREFETCH["queue"],
                eviction=EVICTION["belady"],
                host_eviction=EVICTION[host] if host else {},
            )
        ).summary["adapter_loads"]
        for host in (None, "belady", "lru")
    }
    assert loads["None"] == loads["belady"] != loads["lru"]


def test_an_adapter_that_the_loader_took_away_is_activated_again(tmp_path: Path) -> None:
    """`a` is asked for twice; between, it leaves the host cache, and no step has another adapter. `b`, for
    which the loader looks meanwhile, is asked for in the end.
    """
    path = tmp_path / "trace.jsonl"
    lines = [
        {"timestamp": 5000 * number, "request_id": str(number), "adapter": name} | LENGTHS
        for number, name in enumerate("aab")
    ]
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    wanted = {"_target_": f"{__name__}.WantsAnother"}
    workload = {
        "mode": "open",
        "path": str(path),
        "popularity": None,
        "input_length": None,
        "output_length": None,
    }
    summary = simulate(
        config(workload, SMALL | {"max_loras": 1, "max_cpu_loras": 1}, prefetch=wanted)
    ).summary
    assert summary["counts"]["completed"] == summary["adapter_activations"] == 3


class WantsAnother(QueuePrefetch):
    """What waits, and then `b`, for which it looks once a second."""

    def bind(self, engine: Any) -> None:
        super().bind(engine)
        self.engine = engine

    def wanted(self) -> list[str]:
        return [*super().wanted(), "b"]

    def next_change_ns(self) -> int:
        return int(self.engine.now_ns) + 10**9


@pytest.mark.parametrize("bound", ["throughput", "latency"])
@few
@given(workload=WORKLOADS, engine=ENGINES)
def test_bounds(bound: str, workload: Config, engine: Config) -> None:
    assert_fast_forward_changes_nothing(workload, engine, bound=bound)


LENGTHS = {"input_length": 8, "output_length": 2}
BUSY: Config = {
    "mode": "open",
    "request_rate": 60.0,
    "num_requests": 60,
    "num_adapters": 12,
    "popularity": {"kind": "zipf", "exponent": 0.8},
    "input_length": 40,
    "output_length": 30,
}
SMALL: Config = {"max_loras": 4, "max_cpu_loras": 6, "max_num_seqs": 16, "max_model_len": 512}
BEST = {
    "admission": ADMISSION["amortize"],
    "eviction": EVICTION["queue_aware"],
    "prefetch": {"_target_": "policies.prefetch.QueuePrefetch"},
}


@pytest.mark.parametrize("policies", [{}, BEST], ids=["vllm", "best"])
def test_an_engine_with_free_adapters_serves_faster(policies: Config) -> None:
    throughput = simulate(config(BUSY, SMALL, **policies)).summary["request_throughput"]
    bound = simulate(config(BUSY, SMALL, bound="throughput")).summary["request_throughput"]
    assert throughput < bound


def test_free_swaps_happen_and_take_no_time() -> None:
    summary = simulate(config(BUSY, SMALL, bound="latency")).summary
    assert summary["adapter_loads"] >= 12
    assert summary["time_share"]["loading"] == summary["time_share"]["activation"] == 0


def test_the_loader_takes_loads_off_the_critical_path() -> None:
    """Every adapter is loaded, but the GPU waits for none of it."""
    summary = simulate(config(BUSY, SMALL, **BEST)).summary
    assert summary["adapter_loads"] >= 10
    assert summary["time_share"]["loading"] == 0
    assert summary["counts"]["completed"] == 60


def test_a_loader_that_is_given_its_loads_between_steps_waits_for_them() -> None:
    workload = BUSY | {"num_requests": 30}
    loads = {}
    for jobs in (None, 1, 2):
        run = simulate(config(workload, SMALL, **BEST, loader={"jobs": jobs}, record={"adapters": True}))
        events = run.adapters.to_pandas()
        loads[jobs] = events[events.kind == "load"].time_s.sort_values().tolist()
    assert len(loads[None]) >= 10
    assert loads[None][5] < loads[2][5] < loads[1][5]


class Raises:
    """Raises when it is asked."""

    def __init__(self) -> None:
        self.waiting: list[Any] = []

    def bind(self, engine: Any) -> None:
        self.engine = engine

    def add(self, request: Any) -> None:
        self.waiting.append(request)

    requeue = add

    def overtakes(self, request: Any) -> bool:
        return True

    def remove(self, request: Any) -> None:
        self.waiting.remove(request)

    admit = remove

    def on_finish(self, request: Any) -> None:
        pass

    def next_change_ns(self) -> Any:
        return None

    def candidates(self, view: Any) -> Any:
        raise KeyError("nobody")

    def __len__(self) -> int:
        return len(self.waiting)


class Stranger(Raises):
    """Offers somebody who does not wait."""

    def candidates(self, view: Any) -> Any:
        yield "somebody"


class Twice(Raises):
    """Offers the same request again."""

    def candidates(self, view: Any) -> Any:
        first = self.waiting[0]
        yield first
        yield first


class Starves(Raises):
    """Offers nobody whose number is even."""

    def candidates(self, view: Any) -> Any:
        yield from [request for request in self.waiting if int(request.request_id[-1]) % 2]


class WrongTime(Starves):
    """Does not know what a time is."""

    def next_change_ns(self) -> Any:
        return 0.5


class Ghost:
    """Gives up what is not there."""

    def __init__(self) -> None:
        self.keys: list[str] = []

    def bind(self, tier: Any) -> None:
        pass

    def on_miss(self, key: str) -> None:
        pass

    on_access = on_remove = on_insert = on_miss

    def on_repeat(self, keys: Any, num_steps: int, last_ns: int) -> None:
        pass

    def victim(self, needed: Any) -> str:
        return "ghost"


class Newest(Ghost):
    """Gives up what came last, be it in use."""

    def on_insert(self, key: str) -> None:
        self.keys.append(key)

    def on_remove(self, key: str) -> None:
        self.keys.remove(key)

    def victim(self, needed: Any) -> str:
        return self.keys[-1]


@pytest.mark.parametrize(
    ("policies", "message"),
    [
        (
            {"admission": {"_target_": "test_policy_runs.Raises"}},
            r"^admission policy Raises: candidates raised KeyError: 'nobody' \(step 0, ",
        ),
        (
            {"admission": {"_target_": "test_policy_runs.Stranger"}},
            r"^admission policy Stranger: candidates yielded 'somebody', which does not wait \(step 0, ",
        ),
        (
            {"admission": {"_target_": "test_policy_runs.Twice"}},
            r"^admission policy Twice: candidates yielded 'request-.*', which .* \(step \d+, ",
        ),
        (
            {"admission": {"_target_": "test_policy_runs.Starves"}, "starvation_s": 2.5},
            r"^admission policy Starves: request-000000 \(adapter adapter-.*\) has waited for [23]\.\d s "
            r"while there was room for it; starvation_s=2.5 \(step \d+, ",
        ),
        (
            {"admission": {"_target_": "test_policy_runs.WrongTime"}},
            r"^admission policy WrongTime: next_change_ns returned 0.5; expected a whole number, or None",
        ),
        (
            {"eviction": {"_target_": "test_policy_runs.Ghost"}},
            r"Ghost returned 'ghost', which is not in the tier; allowed: 'adapter-.* \(step \d+, ",
        ),
        (
            {"eviction": {"_target_": "test_policy_runs.Newest"}},
            r"^eviction policy Newest, or that of the host cache: gave up an adapter that was applied",
        ),
    ],
)
def test_who_misbehaves_is_named(policies: Config, message: str) -> None:
    with pytest.raises(UserError, match=message):
        simulate(config(BUSY, SMALL, **policies))


def test_what_is_not_vllms_own_is_written_for_vllm(tmp_path: Path) -> None:
    """The file that calibrate.bridge reads: the policies that differ, and where their costs come from."""
    run(config(BUSY, SMALL), tmp_path / "own")
    assert not (tmp_path / "own/policy.yaml").exists()
    result = run(config(BUSY, SMALL, **BEST), tmp_path / "best")
    assert yaml.safe_load((tmp_path / "best/policy.yaml").read_text()) == {**BEST, "profile": PROFILE["name"]}
    command = result.summary["vllm_serve_command"]
    assert command.startswith("LORASIM_POLICY=policy.yaml vllm serve ")
    assert command.endswith(" --scheduler-cls calibrate.bridge.PolicyScheduler")
