"""What is served is what is simulated: the same arrivals through `lorasim` and through the server."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import openai
import pytest

from sim.request import Request
from sim.serve.backend import Backend
from sim.simulation import simulate
from sim.workload import RequestSpec, WorkloadConfig, requests
from tests.sim.serve.serving import AsgiClient, VirtualLoop, running, serve_config, with_client
from tests.sim.test_profile import LLAMA, SETTINGS
from tests.sim.test_simulation import OPEN, config

SMALL = OPEN | {"duration_s": None, "num_requests": 150, "request_rate": 60.0, "output_length": 7}
LENGTHS = {"kind": "uniform", "min": 2, "max": 60}
FITTED = {"profile": SETTINGS, "model": LLAMA}
COLUMNS = ["adapter", "arrival_s", "scheduled_s", "first_token_s", "finish_s", "num_generated_tokens"]
Row = tuple[Any, ...]


def cases() -> Iterator[Any]:
    yield pytest.param(config(SMALL), id="constant")
    yield pytest.param(config(SMALL, {"async_scheduling": False}), id="synchronous")
    crowded = {"max_loras": 2, "max_cpu_loras": 3, "max_num_seqs": 4, "max_lora_rank": 16}
    yield pytest.param(config(SMALL | {"input_length": LENGTHS}, crowded, **FITTED), id="swaps")
    few_blocks = {"num_gpu_blocks": 14, "max_model_len": 96}
    yield pytest.param(config(SMALL | {"output_length": 40}, few_blocks), id="preemptions")
    yield pytest.param(config(SMALL | {"abort_ms": 200.0, "output_length": 12}), id="time-outs")
    least = {"_target_": "policies.routing.LeastLoaded"}
    yield pytest.param(config(SMALL, replicas=2, routing=least, **FITTED), id="two replicas")
    of_host = {"host_eviction": {"_target_": "policies.eviction.Lfu"}}
    others = {"eviction": {"_target_": "policies.eviction.QueueAware"}} | of_host
    yield pytest.param(config(SMALL, crowded, **FITTED, **others), id="other eviction")
    urgent = {"_target_": "policies.admission.Priority"}
    yield pytest.param(config(SMALL, {"scheduling_policy": "priority"}, admission=urgent), id="priority")


@pytest.mark.parametrize("run", list(cases()))
@pytest.mark.parametrize("stream", [True, False])
def test_latencies_in_virtual_time_are_the_simulations_to_the_nanosecond(
    run: dict[str, Any], stream: bool
) -> None:
    simulated = simulate(run)
    served, metrics = play(run, stream)
    rows = simulated.requests.select(COLUMNS).to_pylist()
    assert [row(request) for request in served] == [tuple(each.values()) for each in rows]
    assert len(served) == 150
    for name in ("adapter_loads", "adapter_activations"):
        assert metrics[f"lorasim:{name}_total"] == simulated.summary[name]
    assert metrics["vllm:num_preemptions_total"] == simulated.summary["num_preemptions"]
    assert metrics["lorasim:requests_aborted_total"] == simulated.summary["counts"]["aborted"]


def test_the_cases_have_what_their_names_say() -> None:
    found = {case.id: simulate(case.values[0]).summary for case in cases()}
    assert found["swaps"]["adapter_activations"] > found["swaps"]["adapter_loads"] > 10
    assert found["preemptions"]["num_preemptions"] > 0
    assert 0 < found["time-outs"]["counts"]["aborted"] < 150
    assert min(replica["completed"] for replica in found["two replicas"]["replicas"]) > 0


def row(request: Request) -> Row:
    times = (request.arrival_ns, request.scheduled_ns, request.first_token_ns, request.finish_ns)
    in_seconds = (None if time_ns is None else time_ns / 1e9 for time_ns in times)
    return (request.adapter, *in_seconds, request.num_output_tokens)


def play(run: dict[str, Any], stream: bool) -> tuple[list[Request], dict[str, float]]:
    """Send the workload of a simulation to a virtual server; returns its requests and its counters."""
    workload = WorkloadConfig.from_mapping(run["workload"])
    timeout_s = None if workload.abort_ms is None else workload.abort_ms / 1e3
    served: list[Request] = []

    async def task(client: AsgiClient, backend: Backend, loop: VirtualLoop) -> dict[str, float]:
        keep_requests(backend, served)
        token_ids = count()

        async def send(spec: RequestSpec) -> None:
            prompt = [next(token_ids) for _ in range(spec.input_length)]
            await loop.sleep_until(spec.arrival_ns)
            body = {"model": spec.adapter, "prompt": prompt, "max_tokens": spec.output_length}
            answer = await client.post("/v1/completions", body | {"stream": stream})
            check_times(answer.events if stream else None, served[int(spec.request_id[-6:])])

        async with asyncio.TaskGroup() as group:
            for spec in requests(workload, run["seed"]):
                group.create_task(send(spec))
        return totals(backend)

    return served, with_client(serve_config(run, request_timeout_s=timeout_s), task)


def keep_requests(backend: Backend, kept: list[Request]) -> None:
    """Append every request that an engine gets to `kept`."""
    for engine in backend._router.engines:

        def submit(request: Request, submit: Any = engine.submit) -> None:
            kept.append(request)
            submit(request)

        engine.submit = submit  # type: ignore[method-assign]


def check_times(events: list[tuple[int, Any]] | None, request: Request) -> None:
    """A token is sent when its instant is over: 1 ns after it. A chunk has one token."""
    if events is None or request.finish_ns is None:
        return
    tokens = [(at, event["choices"][0]["text"]) for at, event in events[:-1]]
    assert [text.strip() for _, text in tokens] == [f"w{n}" for n in range(1, request.num_output_tokens + 1)]
    assert (tokens[0][0], tokens[-1][0]) == (request.first_token_ns + 1, request.finish_ns + 1)  # type: ignore[operator]


def totals(backend: Backend) -> dict[str, float]:
    """Each counter of `/metrics`, summed over the replicas."""
    found: dict[str, float] = {}
    for family in backend.metrics_now().registry.collect():
        for sample in family.samples:
            if sample.name.endswith("_total"):
                found[sample.name] = found.get(sample.name, 0) + sample.value
    return found


def test_latencies_in_real_time_are_the_simulations_within_the_resolution_of_the_timer(
    tmp_path: Path,
) -> None:
    """Nothing is early, and half of the tokens are no later than a timer and an answer were meanwhile."""
    run = config(SMALL, {"max_loras": 2, "max_lora_rank": 16}, **FITTED)
    served: list[Request] = []
    with running(serve_config(run)) as (address, backend):
        keep_requests(backend, served)
        late_s, worst_s = asyncio.run(lateness(address, served))
    assert len(late_s) == 2 * len(served) == 80
    assert min(late_s) >= 0
    assert sorted(late_s)[len(late_s) // 2] <= worst_s
    simulated = simulate(run | {"workload": recorded(served, tmp_path / "served.jsonl")})
    rows = simulated.requests.select(COLUMNS).to_pylist()
    assert [row(request) for request in served] == [tuple(each.values()) for each in rows]


def recorded(served: list[Request], path: Path) -> dict[str, Any]:
    """The workload that has these requests at the instants when they came."""
    lines = [
        {
            "timestamp": request.arrival_ns / 1e6,
            "input_length": request.num_prompt_tokens,
            "output_length": request.max_tokens,
            "adapter": request.adapter,
        }
        for request in served
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    names = [f"adapter-{number:04d}" for number in range(10)]
    return {
        "mode": "open", "path": str(path), "adapters": names,
        "popularity": None, "input_length": None, "output_length": None,
    }  # fmt: skip


async def lateness(address: str, served: list[Request]) -> tuple[list[float], float]:
    """Send 40 requests; returns how much later than simulated their first and last tokens came, and how
    late a timer, plus an answer without simulation, was at worst meanwhile.
    """
    async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:

        async def send(number: int) -> list[float]:
            await asyncio.sleep(number * 0.02)
            sent_s = time.perf_counter()
            stream = await client.completions.create(
                model=f"adapter-{number % 10:04d}", prompt=[number] * (10 + number), max_tokens=8, stream=True
            )
            came_s = [time.perf_counter() - sent_s async for _ in stream]
            (request,) = (request for request in served if request.num_prompt_tokens == 10 + number)
            assert request.first_token_ns is not None and request.finish_ns is not None
            simulated_ns = request.first_token_ns, request.finish_ns
            pairs = zip((came_s[0], came_s[-1]), simulated_ns, strict=True)
            return [at_s - (known_ns - request.arrival_ns) / 1e9 for at_s, known_ns in pairs]

        async def worst(attempt: Callable[[], Awaitable[object]], expected_s: float) -> float:
            worst_s = 0.0
            while not sending.done():
                begin_s = time.perf_counter()
                await attempt()
                worst_s = max(worst_s, time.perf_counter() - begin_s - expected_s)
            return worst_s

        sending = asyncio.gather(*map(send, range(40)))
        timer = worst(lambda: asyncio.sleep(0.002), 0.002)
        answer = worst(client.models.list, 0)
        worst_s = await asyncio.gather(timer, answer)
        return [late_s for both in await sending for late_s in both], sum(worst_s)
