"""The settings of a server, checked: ``conf/serve.yaml``."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

from sim.config import EngineConfig, EnginesConfig
from sim.errors import UserError
from sim.fields import as_mapping, build, require_positive
from sim.workload import adapter_name, lengths, ranks
from sim.workload.lengths import Lengths
from sim.workload.ranks import RankMix

ALLOW_LORA_UPDATING = "VLLM_ALLOW_RUNTIME_LORA_UPDATING"
"""The environment variable that switches it on in vLLM (vllm/envs.py)."""


@dataclass(frozen=True)
class ServerConfig:
    """``serve``: the server in front of the engines. The comments of ``conf/serve.yaml`` say what each is."""

    host: str = "127.0.0.1"
    port: int = 8000
    served_model_name: str | None = None
    adapters: int | list[str] = 1000
    adapter_rank: RankMix | None = None
    preload: bool = False
    allow_runtime_lora_updating: bool | None = None
    output_length: Lengths | None = None
    speed: float = 1.0
    max_queued_requests: int = 1024
    max_request_bytes: int = 2**24
    request_timeout_s: float | None = None
    shutdown_timeout_s: float = 10.0
    access_log: bool = False

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """Build from the resolved ``serve`` section; raises UserError."""
        sections = dict(values)
        sections["adapter_rank"] = ranks.from_value(values.get("adapter_rank"), "serve.adapter_rank")
        if values.get("output_length") is not None:
            sections["output_length"] = lengths.from_value(values["output_length"], "serve.output_length")
        return build(cls, sections, "serve")

    def __post_init__(self) -> None:
        require_positive("serve", self, "speed", "max_queued_requests", "max_request_bytes")
        require_positive("serve", self, "request_timeout_s")
        if not 0 <= self.port < 2**16:
            raise UserError(f"serve.port={self.port}: expected 0 (any free one) to {2**16 - 1}")
        if self.shutdown_timeout_s < 0:
            raise UserError(f"serve.shutdown_timeout_s={self.shutdown_timeout_s}: must not be negative")
        if isinstance(self.adapters, int) and self.adapters < 0:
            raise UserError(f"serve.adapters={self.adapters}: must not be negative")
        names = self.adapter_names
        if len(set(names)) < len(names) or "" in names:
            raise UserError(f"serve.adapters={names}: expected names, none of them empty or there twice")

    @property
    def adapter_names(self) -> list[str]:
        """The adapters that are served from the start; a number stands for names as a workload's."""
        if isinstance(self.adapters, list):
            return self.adapters
        return [adapter_name(index) for index in range(self.adapters)]

    @property
    def lora_updating_allowed(self) -> bool:
        """Whether clients may load and unload adapters; null in the configuration leaves it to vLLM's
        environment variable.
        """
        if self.allow_runtime_lora_updating is None:
            return os.environ.get(ALLOW_LORA_UPDATING, "0").strip().lower() in ("1", "true")
        return self.allow_runtime_lora_updating


@dataclass(frozen=True, kw_only=True)
class ServeConfig(EnginesConfig):
    """Everything a server depends on: a run's engines, and ``serve``."""

    serve: ServerConfig = field(default_factory=ServerConfig)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """Build from the resolved configuration; raises UserError that names the key."""
        sections = cls.sections(values)
        server = ServerConfig.from_mapping(as_mapping(sections.get("serve", {}), "serve"))
        if server.preload:
            sections["engine"] = preloaded(sections["engine"], server.adapter_names)
        return build(cls, sections | {"serve": server}, "")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.engine.fast_forward:
            raise UserError(
                "engine.fast_forward=true: a server tells each token when it is known; expected false"
            )
        if self.bound is not None:
            raise UserError(f"bound={self.bound!r}: a bound is no engine that could serve; expected null")
        for adapter, rank in self.ranks.items():
            if rank > self.engine.max_lora_rank:
                raise UserError(
                    f"serve.adapter_rank: {adapter} has rank {rank}; "
                    f"must be at most engine.max_lora_rank={self.engine.max_lora_rank}"
                )

    @property
    def model_name(self) -> str:
        """The base model's name in requests."""
        return self.serve.served_model_name or self.model.name

    @property
    def ranks(self) -> dict[str, int]:
        """Rank of every adapter that is served from the start."""
        names, mix = self.serve.adapter_names, self.serve.adapter_rank
        drawn = [self.engine.max_lora_rank] * len(names) if mix is None else mix.draw(self.seed, len(names))
        return dict(zip(names, drawn, strict=True))


def preloaded(engine: EngineConfig, adapters: list[str]) -> EngineConfig:
    """Return ``engine`` with the first adapters in the host cache, and of those the first in the slots."""
    if engine.initial_host_cache or engine.initial_slots:
        raise UserError(
            "serve.preload=true: engine.initial_host_cache and engine.initial_slots are given too; "
            "expected one or the other"
        )
    host_cache = adapters[: engine.host_cache_entries]
    return replace(engine, initial_host_cache=host_cache, initial_slots=host_cache[: engine.max_loras])
