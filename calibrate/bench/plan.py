"""What a run sends: a workload's arrivals, adapters and lengths, with a dataset's prompts or made-up ones."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any

from calibrate.bench.dataset import DatasetLine
from calibrate.bench.load import Plan, PlannedRequest
from calibrate.bench.names import Names
from calibrate.bench.prompts import Prompts
from sim.errors import UserError
from sim.workload import RequestSpec, Traffic, WorkloadConfig, traffic
from sim.workload.streams import stream

NS_PER_S = 1e9


@dataclass(frozen=True)
class Sending:
    """How requests are made. `prompts` makes up their prompts where there are no `lines`."""

    workload: WorkloadConfig
    seed: int
    api: str
    prompts: Prompts
    lines: Sequence[DatasetLine] = ()
    ignore_eos: bool = True
    temperature: float = 0.0
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    salt: str = ""
    """Made-up prompts of another salt are others: a server that has seen the former has not cached these."""


def make_plan(mode: str, sending: Sending, names: Names) -> Plan:
    """Return the plan of a run; every mode has the same arrivals, lengths and, of a dataset, prompts.

    Raises UserError and OSError.
    """
    workload = sending.workload
    arriving = traffic(workload, sending.seed)
    return Plan(
        mode,
        _requests(mode, arriving, sending, names),
        workload.concurrency if workload.mode == "closed" else None,
        arriving.num_requests,
        workload.duration_s,
    )


def shuffled(lines: Sequence[DatasetLine], seed: int) -> list[DatasetLine]:
    """Return the lines in an order of the seed's."""
    return [lines[index] for index in stream(seed, "dataset").permutation(len(lines))]


def prompt_body(api: str, prompt: str | list[int] | None, line: DatasetLine | None) -> dict[str, Any]:
    """Return the part of a body that asks: a dataset's line, or `prompt` where there is none."""
    if line is not None and line.messages is not None:
        return {"messages": line.messages}
    asked = prompt if line is None else line.prompt
    return {"messages": [{"role": "user", "content": asked}]} if api == "chat" else {"prompt": asked}


def _requests(mode: str, arriving: Traffic, sending: Sending, names: Names) -> Iterator[PlannedRequest]:
    """Yield the requests, a dataset's lines over and over."""
    lines: Iterator[DatasetLine | None] = cycle(sending.lines or (None,))
    for spec, line in zip(arriving.specs, lines, strict=False):
        adapter = names.of(spec.adapter, line, mode)
        model = names.base if adapter is None else adapter
        if model is None:
            raise UserError(f"model: not given; {spec.request_id} asks for the base model, by its name")
        yield PlannedRequest(
            spec.request_id,
            adapter,
            {"model": model, **_content(mode, spec, line, sending), **_options(spec, line, sending)},
            spec.arrival_ns / NS_PER_S,
            None if line else spec.input_length,
            None if spec.abort_ns is None else spec.abort_ns / NS_PER_S,
        )


def _content(mode: str, spec: RequestSpec, line: DatasetLine | None, sending: Sending) -> dict[str, Any]:
    if line is not None:
        return prompt_body(sending.api, None, line)
    # The second run of a comparison must not find the first's prompts cached.
    salt, hash_block_size = f"{sending.salt}/{mode}", sending.workload.hash_block_size
    return prompt_body(sending.api, sending.prompts(spec, sending.seed, salt, hash_block_size), None)


def _options(spec: RequestSpec, line: DatasetLine | None, sending: Sending) -> dict[str, Any]:
    asked = None if line is None else line.max_tokens
    options: dict[str, Any] = {"max_tokens": asked or spec.output_length, "temperature": sending.temperature}
    if sending.ignore_eos:
        options["ignore_eos"] = True
    if spec.priority:
        options["priority"] = spec.priority
    return options | dict(sending.extra_body)
