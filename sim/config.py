"""The settings of a run, checked: frozen dataclasses built from the resolved Hydra configuration."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

from omegaconf import DictConfig, OmegaConf

from sim.errors import UserError
from sim.fields import as_mapping, build, plain_values, require_finite, require_positive
from sim.workload import WorkloadConfig, adapter_name

LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The values of ``max_lora_rank`` that vLLM takes (vllm/config/lora.py)."""

SCHEDULING_POLICIES = ("fcfs", "priority")
"""The values of ``scheduling_policy`` that vLLM takes (vllm/config/scheduler.py)."""

CUDAGRAPH_MODES = ("FULL_AND_PIECEWISE", "PIECEWISE")
"""The values of vLLM's ``cudagraph_mode`` that are modelled: its default, and the only one of vLLM 0.8.5."""

NOT_OF_A_RUN = ("objective", "sweep")
"""What ``conf/config.yaml`` holds beside a run: by what it is judged, and how a sweep goes about it."""

DTYPE_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}


@dataclass(frozen=True)
class EngineConfig:
    """``conf/engine``: the flags of ``vllm serve``, spelled as there and with its meaning.

    ``max_cpu_loras`` null is ``max_loras``. ``num_gpu_blocks`` is vLLM's ``num_gpu_blocks_override``, null
    block included; null means as many as fit. ``cudagraph_mode`` and ``cudagraph_capture_sizes`` are keys of
    ``--compilation-config``; null sizes are vLLM's own. No flags of vLLM's: ``initial_host_cache`` and
    ``initial_slots`` name the adapters that are there when a run starts, oldest first, or say how many of the
    workload's first ones are; ``fast_forward`` simulates in compiled code what that knows (sim.compiled), and
    else steps that are alike at once, with the same results;
    ``lora_embeddings`` says whether slots have room for adapters of the embedding and the output layer, which
    vLLM 0.8.5 decides by the model's class, and ``lora_extra_vocab_size`` counts the tokens that an adapter
    may add there. Raises UserError for what vLLM refuses at start (vllm/config/lora.py, scheduler.py).
    """

    max_loras: int = 32
    max_cpu_loras: int | None = None
    max_lora_rank: int = 16
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192
    max_model_len: int = 8192
    block_size: int = 16
    num_gpu_blocks: int | None = None
    gpu_memory_utilization: float = 0.9
    enable_prefix_caching: bool = True
    async_scheduling: bool = True
    scheduling_policy: str = "fcfs"
    scheduler_reserve_full_isl: bool = True
    specialize_active_lora: bool = False
    enforce_eager: bool = False
    cudagraph_mode: str = "FULL_AND_PIECEWISE"
    cudagraph_capture_sizes: list[int] | None = None
    lora_embeddings: bool = True
    lora_extra_vocab_size: int = 0
    long_prefill_token_threshold: int = 0
    initial_host_cache: list[str] | int = field(default_factory=list)
    initial_slots: list[str] | int = field(default_factory=list)
    fast_forward: bool = True

    @property
    def host_cache_entries(self) -> int:
        """Adapters that the host cache holds at most: ``max_cpu_loras`` with vLLM's default filled in."""
        return self.max_loras if self.max_cpu_loras is None else self.max_cpu_loras

    def refused_by_vllm(self) -> list[str]:
        """Return a sentence for each setting that is simulated though vLLM would not start with it.

        Its attention backends for CUDA take blocks of 16 tokens or a multiple (vllm/v1/attention/backends,
        `get_supported_kernel_block_sizes`; in vLLM 0.8.5 `get_kv_cache_shape`).
        """
        if self.block_size % 16 == 0:
            return []
        return [
            f"engine.block_size={self.block_size}: vLLM would not start; on a GPU it takes multiples of 16"
        ]

    @property
    def warm_host_cache(self) -> list[str]:
        """The names of ``initial_host_cache``."""
        return _names(self.initial_host_cache)

    @property
    def warm_slots(self) -> list[str]:
        """The names of ``initial_slots``."""
        return _names(self.initial_slots)

    def for_adapters(self, num_adapters: int) -> Self:
        """Return the settings for a workload of so many adapters: a warm start has no others."""
        numbers: dict[str, Any] = {
            name: min(value, num_adapters)
            for name in ("initial_host_cache", "initial_slots")
            if isinstance(value := getattr(self, name), int)
        }
        return replace(self, **numbers)

    def __post_init__(self) -> None:
        positive = ("max_loras", "max_cpu_loras", "max_num_seqs", "max_num_batched_tokens", "max_model_len")
        require_positive("engine", self, *positive, "block_size", "num_gpu_blocks", "gpu_memory_utilization")
        if self.max_lora_rank not in LORA_RANKS:
            accepted = ", ".join(map(str, LORA_RANKS))
            raise UserError(f"engine.max_lora_rank={self.max_lora_rank}: expected one of {accepted}")
        if self.host_cache_entries < self.max_loras:
            raise UserError(
                f"engine.max_cpu_loras={self.max_cpu_loras}: "
                f"must be at least engine.max_loras={self.max_loras}"
            )
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise UserError(
                f"engine.max_num_batched_tokens={self.max_num_batched_tokens}: "
                f"must be at least engine.max_num_seqs={self.max_num_seqs}"
            )
        if self.gpu_memory_utilization > 1:
            raise UserError(f"engine.gpu_memory_utilization={self.gpu_memory_utilization}: must be at most 1")
        if not 0 <= self.long_prefill_token_threshold <= self.max_model_len:
            raise UserError(
                f"engine.long_prefill_token_threshold={self.long_prefill_token_threshold}: "
                f"must be between 0 (off) and engine.max_model_len={self.max_model_len}"
            )
        if self.cudagraph_mode not in CUDAGRAPH_MODES:
            accepted = ", ".join(CUDAGRAPH_MODES)
            raise UserError(f"engine.cudagraph_mode={self.cudagraph_mode!r}: expected one of {accepted}")
        if self.scheduling_policy not in SCHEDULING_POLICIES:
            accepted = ", ".join(SCHEDULING_POLICIES)
            raise UserError(
                f"engine.scheduling_policy={self.scheduling_policy!r}: expected one of {accepted}"
            )
        self._check_warm_start()

    def _check_warm_start(self) -> None:
        limits = {"initial_host_cache": ("max_cpu_loras", self.host_cache_entries)}
        limits["initial_slots"] = ("max_loras", self.max_loras)
        for name, (limit_name, limit) in limits.items():
            value: list[str] | int = getattr(self, name)
            if isinstance(value, int) and value < 0:
                raise UserError(f"engine.{name}={value}: must not be negative")
            adapters = _names(value)
            for index, adapter in enumerate(adapters):
                if adapter in adapters[:index]:
                    raise UserError(f"engine.{name}={adapters}: {adapter} is in it twice")
            if len(adapters) > limit:
                raise UserError(
                    f"engine.{name}={value}: {len(adapters)} adapters, at most engine.{limit_name}={limit}"
                )
        cached = set(self.warm_host_cache)
        for adapter in self.warm_slots:
            if adapter not in cached:
                raise UserError(
                    f"engine.initial_slots={self.initial_slots}: {adapter} is not in "
                    "engine.initial_host_cache; what has a slot is in the host cache too"
                )


def _names(adapters: list[str] | int) -> list[str]:
    if isinstance(adapters, list):
        return adapters
    return [adapter_name(index) for index in range(adapters)]


@dataclass(frozen=True)
class ModelConfig:
    """``conf/model``: the shape of a dense decoder with gated MLP, named as in Hugging Face's config.json.

    ``hf`` is what else a config.json of the model needs.
    """

    name: str
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    tie_word_embeddings: bool
    dtype: str = "bfloat16"
    hf: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        sizes = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "head_dim")
        require_positive(
            "model", self, *sizes, "num_key_value_heads", "vocab_size", "max_position_embeddings"
        )
        if self.dtype not in DTYPE_BYTES:
            raise UserError(f"model.dtype={self.dtype!r}: expected one of {', '.join(DTYPE_BYTES)}")

    def linear_shapes(self) -> tuple[tuple[int, int], ...]:
        """Return (input size, output size) of a layer's linear modules: q, k, v, o, gate, up, down."""
        query, key = self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        hidden, mlp = self.hidden_size, self.intermediate_size
        attention = ((hidden, query), (hidden, key), (hidden, key), (query, hidden))
        return (*attention, (hidden, mlp), (hidden, mlp), (mlp, hidden))

    def weight_bytes(self) -> int:
        """Return the bytes of the base weights; biases and per-head norms (below 0.01 %) are left out."""
        layer = sum(inputs * outputs for inputs, outputs in self.linear_shapes()) + 2 * self.hidden_size
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tie_word_embeddings else 2)
        return (self.num_hidden_layers * layer + embeddings + self.hidden_size) * DTYPE_BYTES[self.dtype]

    def kv_bytes_per_token(self) -> int:
        """Return the bytes of the keys and values of one token in all layers."""
        per_layer = 2 * self.num_key_value_heads * self.head_dim
        return self.num_hidden_layers * per_layer * DTYPE_BYTES[self.dtype]

    def lora_bytes(self, rank: int) -> int:
        """Return the bytes of one adapter of ``rank`` on all linear modules, A and B."""
        per_layer = sum(inputs + outputs for inputs, outputs in self.linear_shapes())
        return self.num_hidden_layers * per_layer * rank * DTYPE_BYTES[self.dtype]


@dataclass(frozen=True)
class RecordConfig:
    """``record``: what a run writes beside ``summary.json`` and ``requests.parquet``."""

    steps: bool = False
    adapters: bool = False
    trace: bool = False


@dataclass(frozen=True)
class SloConfig:
    """``slo``: what a request must meet to count for ``request_goodput``; null is no such target.

    As ``--goodput`` of ``vllm bench serve``: time to first token, time per output token after the first
    (a request of one token meets any), end-to-end latency.
    """

    ttft_ms: float | None = None
    tpot_ms: float | None = None
    e2el_ms: float | None = None

    def __post_init__(self) -> None:
        require_positive("slo", self, "ttft_ms", "tpot_ms", "e2el_ms")


@dataclass(frozen=True)
class LoaderConfig:
    """``loader``: what loading beside the engine's work costs, where there is a prefetch policy.

    ``load_factor``: a load takes so many times as long as on the engine's own thread. ``host_factor``:
    meanwhile so do the host's phases of every step that is launched, and the activations; both are measured,
    and rounded up: `reports.lab` has the table (overlap=). ``jobs``: loads that it is given ahead, between
    two steps, as calibrate.bridge does it; null: it helps itself at any time.
    """

    load_factor: float = 1.0
    host_factor: float = 1.1
    jobs: int | None = None

    def __post_init__(self) -> None:
        require_positive("loader", self, "load_factor", "host_factor", "jobs")


SLOTS = "slots"
SWAP_MECHANISMS = (SLOTS, "process_restart", "sleep_mode")


@dataclass(frozen=True)
class SwapConfig:
    """``swap``: how an engine comes to another adapter (sim.swap).

    ``slots``: as vLLM does, and the profile knows what that costs. ``process_restart``, ``sleep_mode``: one
    adapter at a time has a process, or one that is awake; the next one's requests wait until nothing runs,
    and then for ``stop_s`` (to stop, or to put to sleep) and ``start_s`` (to start, or to wake). ``source``
    says where these come from: ``measured``, ``reported``, ``assumed`` or more in words.
    """

    mechanism: str = SLOTS
    stop_s: float = 0.0
    start_s: float = 0.0
    source: str | None = None

    @property
    def stop_ns(self) -> int:
        """``stop_s`` in ns."""
        return round(self.stop_s * 1e9)

    @property
    def start_ns(self) -> int:
        """``start_s`` in ns."""
        return round(self.start_s * 1e9)

    def __post_init__(self) -> None:
        if self.mechanism not in SWAP_MECHANISMS:
            raise UserError(
                f"swap.mechanism={self.mechanism!r}: expected one of {', '.join(SWAP_MECHANISMS)}"
            )
        for name in ("stop_s", "start_s"):
            value = getattr(self, name)
            if value < 0:
                raise UserError(f"swap.{name}={value}: must not be negative")
            if value and self.mechanism == SLOTS:
                raise UserError(
                    f"swap.{name}={value}: with swap.mechanism=slots the profile says what it costs"
                )


RESEND = ("replicas", "fallback", "none")
"""What may become of the requests of a lost replica."""


@dataclass(frozen=True)
class FailoverConfig:
    """``failover``: the loss of one replica, for good, at ``at_s``; null: none is lost.

    It is noticed after ``detect_s``. ``resend``: where the gateway sends then what the replica had: to the
    other ``replicas`` as if it had just come, to the ``fallback``, or nowhere (``none``: errors).
    """

    at_s: float | None = None
    replica: int = 0
    detect_s: float = 0.0
    resend: str = "replicas"

    def __post_init__(self) -> None:
        for name in ("at_s", "replica", "detect_s"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise UserError(f"failover.{name}={value}: must not be negative")
        if self.resend not in RESEND:
            raise UserError(f"failover.resend={self.resend!r}: expected one of {', '.join(RESEND)}")


@dataclass(frozen=True, kw_only=True)
class FallbackConfig:
    """``fallback``: a hosted provider behind the gateway, without the adapters: its answers are degraded.

    It answers any number of requests at once, each with the same latencies. ``max_in_flight``: a replica
    with so many requests gets no more, they go to the provider; null: only where no replica is left.
    ``source`` says where the figures come from.
    """

    ttft_ms: float
    tpot_ms: float
    usd_per_request: float = 0.0
    usd_per_million_input_tokens: float = 0.0
    usd_per_million_output_tokens: float = 0.0
    max_in_flight: int | None = None
    source: str | None = None

    def __post_init__(self) -> None:
        prices = ("usd_per_request", "usd_per_million_input_tokens", "usd_per_million_output_tokens")
        for name in ("ttft_ms", "tpot_ms", *prices):
            if getattr(self, name) < 0:
                raise UserError(f"fallback.{name}={getattr(self, name)}: must not be negative")
        require_positive("fallback", self, "max_in_flight")

    def usd(self, num_input_tokens: int, num_output_tokens: int) -> float:
        """Return the price of a request."""
        of_tokens = num_input_tokens * self.usd_per_million_input_tokens
        of_tokens += num_output_tokens * self.usd_per_million_output_tokens
        return self.usd_per_request + of_tokens / 1_000_000

    @classmethod
    def from_value(cls, values: object) -> "FallbackConfig | None":
        """Build from the resolved section; null and a section with nothing in it are none."""
        section = {} if values is None else as_mapping(values, "fallback")
        return build(cls, section, "fallback") if section else None


BOUNDS = ("throughput", "latency")
"""See sim.bounds."""


@dataclass(frozen=True, kw_only=True)
class EnginesConfig:
    """What the engines of a simulation, or of a server, depend on.

    ``profile`` and the policies stay mappings: sim.profile and Hydra read them. ``eviction`` is that of the
    GPU slots, and of the host cache where ``host_eviction`` is null; an empty ``prefetch`` is none.
    ``starvation_s``: no policy may let a request wait longer while there is room for it. ``bound`` simulates
    an engine to which adapters cost less, for reference (sim.bounds).
    ``replicas`` engines, all alike, share the requests as ``routing`` says.
    """

    engine: EngineConfig
    model: ModelConfig
    profile: Mapping[str, Any]
    admission: Mapping[str, Any]
    eviction: Mapping[str, Any]
    routing: Mapping[str, Any] = field(
        default_factory=lambda: {"_target_": "policies.routing.RoundRobin"},
    )
    host_eviction: Mapping[str, Any] | None = None
    prefetch: Mapping[str, Any] = field(default_factory=dict)
    loader: LoaderConfig = LoaderConfig()
    swap: SwapConfig = SwapConfig()
    starvation_s: float = 600.0
    bound: str | None = None
    replicas: int = 1
    seed: int = 0

    @staticmethod
    def sections(values: Mapping[str, Any], **more: type) -> dict[str, Any]:
        """Return ``values`` with each section built that is a class of its own. Raises UserError."""
        require_finite(values)
        readers: dict[str, type] = {"engine": EngineConfig, "model": ModelConfig, "loader": LoaderConfig}
        readers["swap"] = SwapConfig
        built: dict[str, Any] = {
            name: build(section, as_mapping(values.get(name, {}), name), name)
            for name, section in (readers | more).items()
        }
        return dict(values) | built

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise UserError(f"seed={self.seed}: must not be negative")
        if self.replicas < 1:
            raise UserError(f"replicas={self.replicas}: must be greater than 0")
        if self.starvation_s <= 0:
            raise UserError(f"starvation_s={self.starvation_s}: must be greater than 0")
        if self.bound not in (None, *BOUNDS):
            raise UserError(f"bound={self.bound!r}: expected one of {', '.join(BOUNDS)}, or null")
        if self.engine.max_model_len > self.model.max_position_embeddings:
            raise UserError(
                f"engine.max_model_len={self.engine.max_model_len}: "
                f"must be at most model.max_position_embeddings={self.model.max_position_embeddings}"
            )
        if self.swap.mechanism != SLOTS:
            self._check_one_process()

    def _check_one_process(self) -> None:
        """Refuse what a process with one adapter does not have."""
        where = f"swap.mechanism={self.swap.mechanism} serves one adapter at a time; expected"
        for name, number in (
            ("max_loras", self.engine.max_loras),
            ("max_cpu_loras", self.engine.host_cache_entries),
        ):
            if number != 1:
                raise UserError(f"engine.{name}={number}: {where} 1")
        if self.bound is not None:
            raise UserError(f"bound={self.bound!r}: {where} null")


@dataclass(frozen=True, kw_only=True)
class RunConfig(EnginesConfig):
    """Everything one simulation depends on: the engines, and what they serve.

    ``warmup_s`` seconds at the start are left out of the metrics.
    """

    workload: WorkloadConfig
    record: RecordConfig = RecordConfig()
    slo: SloConfig = SloConfig()
    warmup_s: float = 0.0
    failover: FailoverConfig = FailoverConfig()
    fallback: FallbackConfig | None = None

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """Build from the resolved configuration; raises UserError that names the key."""
        sections = cls.sections(values, record=RecordConfig, slo=SloConfig, failover=FailoverConfig)
        sections["fallback"] = FallbackConfig.from_value(sections.get("fallback"))
        sections["workload"] = WorkloadConfig.from_mapping(
            as_mapping(sections.get("workload"), "workload"), "workload"
        )
        sections["engine"] = sections["engine"].for_adapters(sections["workload"].num_adapters)
        return build(cls, sections, "")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_warmup()
        self._check_lengths()
        self._check_rank()
        self._check_failover()

    @property
    def has_gateway(self) -> bool:
        """Whether there is more than a router between the clients and the replicas."""
        return self.failover.at_s is not None or self.fallback is not None

    @property
    def duration_ns(self) -> int | None:
        """When the run ends at the latest; None: when all is done."""
        duration_s = self.workload.duration_s
        return None if duration_s is None or self.workload.until_done else round(duration_s * 1e9)

    @property
    def adapter_rank(self) -> int:
        """The largest rank of the workload's adapters, those that a trace tells of left out."""
        ranks = self.workload.adapter_rank
        return self.engine.max_lora_rank if ranks is None else max(ranks.values)

    def _check_warmup(self) -> None:
        duration_s = self.workload.duration_s
        if self.warmup_s < 0 or (duration_s is not None and self.warmup_s >= duration_s):
            raise UserError(
                f"warmup_s={self.warmup_s}: must be at least 0 and less than workload.duration_s={duration_s}"
            )

    def _check_lengths(self) -> None:
        """Check that requests fit; a closed loop would replace refused ones at one instant for ever."""
        workload = self.workload
        if workload.mode == "open" or workload.input_length is None or workload.output_length is None:
            return
        total = workload.input_length.least + workload.output_length.least
        if total > self.engine.max_model_len:
            raise UserError(
                f"workload.input_length + workload.output_length = {total}: "
                f"must be at most engine.max_model_len={self.engine.max_model_len}"
            )

    def _check_rank(self) -> None:
        if self.adapter_rank > self.engine.max_lora_rank:
            raise UserError(
                f"workload.adapter_rank={self.adapter_rank}: "
                f"must be at most engine.max_lora_rank={self.engine.max_lora_rank}"
            )

    def _check_failover(self) -> None:
        failover = self.failover
        if failover.replica >= self.replicas:
            raise UserError(
                f"failover.replica={failover.replica}: expected 0 to {self.replicas - 1}; "
                f"see replicas={self.replicas}"
            )
        if failover.resend == "fallback" and self.fallback is None:
            raise UserError("failover.resend=fallback: there is none; expected fallback=hosted, for example")
        nobody_left = failover.at_s is not None and self.replicas == 1 and self.fallback is None
        if nobody_left and self.workload.mode == "closed":
            raise UserError(
                f"failover.at_s={failover.at_s}: nobody is left to answer a closed loop; expected "
                "replicas=2 at least, or a fallback"
            )


def run_values(cfg: DictConfig, *others: str) -> dict[str, Any]:
    """Return the run that a command's configuration (``conf/config.yaml``) holds, for `RunConfig`, resolved.

    ``others``: sections that are the command's own beside NOT_OF_A_RUN. Raises omegaconf's errors for what
    cannot be resolved.
    """
    # One by one: what Hydra says of its own cannot be resolved in each place, and a copy takes its time.
    wanted = [str(name) for name in cfg if name not in ("hydra", *NOT_OF_A_RUN, *others)]
    values = {name: cfg[name] for name in wanted}
    return {
        name: plain_values(value) if OmegaConf.is_config(value) else value for name, value in values.items()
    }
