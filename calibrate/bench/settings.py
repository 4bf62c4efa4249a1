"""The settings of `conf/bench.yaml`, checked."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from calibrate.bench.client import Connection
from calibrate.bench.dataset import DatasetLine, read_dataset
from calibrate.bench.names import BASELINE, MULTI, Names
from calibrate.bench.plan import Sending, shuffled
from calibrate.bench.prompts import prompts_of
from sim.errors import UserError
from sim.fields import as_mapping, build
from sim.workload import WorkloadConfig

COMPARE = "compare"
MODES = {BASELINE: (BASELINE,), MULTI: (MULTI,), COMPARE: (BASELINE, MULTI)}
"""The runs of each mode."""


@dataclass(frozen=True)
class BenchConfig:
    """`conf/bench.yaml`; see there. Raises UserError for what is impossible."""

    workload: Mapping[str, Any]
    endpoint: str
    mode: str = MULTI
    api: str = "completions"
    api_key: str | None = None
    config: str | None = None
    model: str | None = None
    adapters: list[str] | None = None
    baseline_adapter: str | None = None
    check_models: bool = True
    dataset: str | None = None
    shuffle: bool = True
    concurrency: int | None = None
    request_rate: float | None = None
    num_requests: int | None = None
    duration_s: float | None = None
    warmup_s: float = 0.0
    stream: bool = True
    ignore_eos: bool | None = None
    temperature: float = 0.0
    prompts: str | None = None
    extra_body: Mapping[str, Any] | None = None
    timeout_s: float = 600.0
    connect_timeout_s: float = 10.0
    stop_after_failures: int | None = None
    gpu_memory: bool | None = None
    out: str = "results"
    seed: int = 0

    def __post_init__(self) -> None:
        positive = ("concurrency", "request_rate", "num_requests", "duration_s", "stop_after_failures")
        for name in positive:
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise UserError(f"{name}={value}: must be greater than 0")
        if self.mode not in MODES:
            raise UserError(f"mode={self.mode!r}: expected one of {', '.join(MODES)}")
        if self.concurrency is not None and self.request_rate is not None:
            raise UserError("concurrency and request_rate: expected one of them, closed loop or open loop")
        if self.warmup_s < 0 or self.seed < 0:
            raise UserError(f"warmup_s={self.warmup_s}, seed={self.seed}: must not be negative")
        if BASELINE in MODES[self.mode] and self.baseline_adapter is None:
            raise UserError(
                f"baseline_adapter: not given; mode={self.mode} needs the model that its baseline asks for"
            )

    @property
    def connection(self) -> Connection:
        """Where the server is."""
        return Connection(
            self.endpoint, self.api, self.api_key, self.stream, self.timeout_s, self.connect_timeout_s
        )

    @property
    def names(self) -> Names:
        """The models that the user names."""
        return Names(base=self.model, baseline=self.baseline_adapter)

    def sending(self) -> Sending:
        """Return how requests are made; reads the dataset. Raises UserError and OSError."""
        lines = self._lines()
        ignore_eos = not lines if self.ignore_eos is None else self.ignore_eos
        prompts = prompts_of(self.prompts, self.api)
        return Sending(
            self._workload(len(lines)),
            self.seed,
            self.api,
            prompts,
            lines,
            ignore_eos,
            self.temperature,
            self.extra_body or {},
            salt=str(time.time_ns()),
        )

    def _lines(self) -> list[DatasetLine]:
        if self.dataset is None:
            return []
        lines = read_dataset(self.dataset)
        if self.api == "completions" and any(line.prompt is None for line in lines):
            raise UserError(f"dataset={self.dataset}: has messages; expected api=chat, or prompts")
        return shuffled(lines, self.seed) if self.shuffle else lines

    def _workload(self, num_lines: int) -> WorkloadConfig:
        """The workload, with what is given at the top in place of its own; a dataset is sent once."""
        values = dict(self.workload)
        if self.concurrency is not None:
            values |= {"mode": "closed", "concurrency": self.concurrency}
        if self.request_rate is not None:
            values |= {"mode": "open", "request_rate": self.request_rate}
        if self.num_requests is not None or self.duration_s is not None:
            values |= {"num_requests": self.num_requests, "duration_s": self.duration_s}
        elif num_lines:
            values |= {"num_requests": num_lines, "duration_s": None}
        return WorkloadConfig.from_mapping(values)


def with_users_file(config: DictConfig, path: str, overrides: Mapping[str, Any]) -> DictConfig:
    """Return `config` with the settings of a YAML file in place of its own, and `overrides` in place of both.

    The file's settings stand at its top or, as in the write-up's `config.yaml`, under `benchmark`. Raises
    UserError for a file that is no such, OmegaConf's error for a key that does not exist.
    """
    if not Path(path).is_file():
        raise UserError(f"config={path}: no such file")
    content = OmegaConf.load(path)
    if not isinstance(content, DictConfig):
        raise UserError(f"config={path}: expected a mapping of settings")
    own = content.pop("benchmark", None)
    merged = OmegaConf.merge(config, content, own or {})
    for key, value in overrides.items():
        OmegaConf.update(merged, key, value)
    assert isinstance(merged, DictConfig)
    return merged


def bench_config(values: Mapping[str, Any]) -> BenchConfig:
    """Build from the resolved configuration. Raises UserError."""
    sections = dict(values)
    sections["workload"] = as_mapping(sections.get("workload"), "workload")
    return build(BenchConfig, sections, "")
