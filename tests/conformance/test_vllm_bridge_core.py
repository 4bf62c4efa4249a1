"""The bridge in vLLM's own EngineCore: bad adapters, prefetch, policies that change."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from calibrate.adapters import write_adapter
from calibrate.bridge.plugin import install, register
from calibrate.bridge.runtime import bridge
from calibrate.bridge.settings import SWAPS, PolicySettings
from sim.config import EngineConfig
from sim.errors import UserError
from tests.conformance.vllm_core import SHAPE, MadeUpCore, lora_request, make_manager, slot_tensors
from tests.conformance.vllm_scheduler import base_config, configured

ENGINE = EngineConfig(
    max_loras=2, max_cpu_loras=3, max_lora_rank=16, max_model_len=100, max_num_seqs=8, num_gpu_blocks=50
)
LRU = {"_target_": "policies.eviction.Lru"}
ODD = "tests.conformance.odd_policies."
PREFETCH = sorted({path.stem for path in Path("conf/prefetch").glob("*.yaml")} - {"none"})
ARRIVALS = {"_target_": ODD + "InOrderOfArrival"}


@pytest.fixture(scope="session")
def vllm_config(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return base_config(tmp_path_factory.mktemp("model"))


@pytest.fixture(autouse=True)
def plain_again(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What `install` changes in vLLM; and no page-locked memory without a GPU."""
    from vllm.lora import lora_model, model_manager  # noqa: PLC0415
    from vllm.v1.worker import lora_model_runner_mixin  # noqa: PLC0415

    looked_up = "LRUCacheWorkerLoRAManager"
    monkeypatch.setattr(lora_model_runner_mixin, looked_up, getattr(lora_model_runner_mixin, looked_up))
    monkeypatch.setattr(lora_model, "PIN_MEMORY", False)
    monkeypatch.setattr(model_manager, "PIN_MEMORY", False)
    yield
    bridge().shutdown()


@pytest.fixture(scope="session")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("adapters")
    for number in range(1, 9):
        write_adapter(root / f"a{number}", SHAPE, rank=8, seed=number)
    return root


def spoil(folder: Path, kind: str) -> None:
    """Make an adapter bad in one way."""
    write_adapter(folder, SHAPE, rank=32 if kind == "rank" else 8, seed=1)
    weights, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    if kind == "missing":
        weights.unlink()
        config.unlink()
        folder.rmdir()
    elif kind == "cut_off":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif kind == "garbage":
        weights.write_bytes(b"garbage" * 100)
    elif kind == "config":
        config.write_text("{")
    elif kind == "modules":
        weights.write_bytes(weights.read_bytes().replace(b"q_proj", b"x_proj"))
    elif kind == "shape":
        wide = {**SHAPE, "intermediate_size": 256}
        write_adapter(folder, wide, rank=8, seed=1)


def start(vllm_config: Any, settings: Any, bridged: bool = True) -> MadeUpCore:
    if bridged:
        install(PolicySettings.from_mapping(settings))
    return MadeUpCore(vllm_config, ENGINE, bridged)


BAD = {
    "missing": "LoRAAdapterNotFoundError",
    "cut_off": "SafetensorError",
    "garbage": "SafetensorError",
    "config": "JSONDecodeError",
    "rank": "ValueError",
    "modules": "ValueError",
    "shape": "RuntimeError",
}
"""What may be wrong with an adapter, and what plain vLLM raises for it."""


@pytest.mark.parametrize("kind", BAD)
def test_plain_vllm_dies_of_a_bad_adapter(
    vllm_config: Any, adapters: Path, tmp_path: Path, kind: str
) -> None:
    spoil(tmp_path / "bad", kind)
    core = start(vllm_config, {}, bridged=False)
    core.add("good", lora_request("a1", 1, adapters / "a1"))
    core.add("bad", lora_request("bad", 9, tmp_path / "bad"))
    with pytest.raises(Exception) as raised:  # Out of EngineCore's loop.
        core.drain()
    assert raised.type.__name__ == BAD[kind]


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_adapter_fails_its_own_requests(
    vllm_config: Any, adapters: Path, tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    spoil(tmp_path / "bad", kind)
    core = start(vllm_config, {})
    for number in range(1, 6):
        core.add(f"good-{number}", lora_request(f"a{number}", number, adapters / f"a{number}"))
        core.add(f"bad-{number}", lora_request("bad", 9, tmp_path / "bad"))
    core.add("base", None)
    core.drain()
    core.add("bad-later", lora_request("bad", 9, tmp_path / "bad"))
    core.drain()
    for name, end in core.ends.items():
        if name.startswith("bad"):
            assert str(end.finish_reason) == "error" and "adapter bad:" in end.stop_reason
            assert core.num_tokens[name] == 0, "nothing that was computed without the adapter comes out"
        else:
            assert str(end.finish_reason) == "length" and core.num_tokens[name] == 4
    assert len(core.ends) == 12
    assert "adapter bad:" in caplog.text
    computed = [step for step in core.worker.steps if any(name.startswith("bad") for name in step)]
    assert len(computed) <= 1, "what a first attempt has shown is remembered"


def test_an_adapter_that_vanishes_while_it_is_in_use(
    vllm_config: Any, adapters: Path, tmp_path: Path
) -> None:
    spoil(tmp_path / "gone", "good")
    core = start(vllm_config, {})
    gone = lora_request("gone", 9, tmp_path / "gone")
    core.add("first", gone)
    core.drain()
    spoil(tmp_path / "gone", "missing")
    core.add("cached", gone)
    core.drain()
    for number in range(1, 5):
        core.add(f"good-{number}", lora_request(f"a{number}", number, adapters / f"a{number}"))
    core.drain()
    core.add("evicted", gone)
    core.drain()
    assert {name for name, end in core.ends.items() if str(end.finish_reason) == "error"} == {"evicted"}


def test_nobody_finds_kv_that_was_computed_without_its_adapter(vllm_config: Any, tmp_path: Path) -> None:
    spoil(tmp_path / "bad", "modules")
    core = start(vllm_config, {})
    bad = lora_request("bad", 9, tmp_path / "bad")
    core.add("fails", bad, prompt=40)
    core.drain()
    assert "fails" in core.worker.num_cached, "what is wrong is seen only when vLLM loads it"
    write_adapter(tmp_path / "bad", SHAPE, rank=8, seed=1)
    for name in ("mended", "again"):
        core.add(name, bad, prompt=40)
        core.drain()
    assert [str(core.ends[name].finish_reason) for name in ("mended", "again")] == ["length", "length"]
    assert core.worker.num_cached["mended"] == 0
    assert core.worker.num_cached["again"] == 32


def test_an_adapter_that_is_loaded_by_hand_fails_as_in_vllm(vllm_config: Any, tmp_path: Path) -> None:
    core = start(vllm_config, {})
    with pytest.raises(Exception, match="gone"):
        core.core.add_lora(lora_request("gone", 9, tmp_path / "gone"))


def test_the_plugin_puts_the_bridge_where_vllm_looks(
    vllm_config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "policy.yaml").write_text("admission: {_target_: policies.admission.FcfsSkip}")
    monkeypatch.setenv("LORASIM_POLICY", str(tmp_path / "policy.yaml"))
    register()
    core = MadeUpCore(vllm_config, ENGINE, bridged=True)
    assert type(core.worker.lora_manager).__name__ == "PolicyWorkerLoRAManager"
    assert type(core.core.scheduler.waiting).__name__ == "PolicyQueue"


def test_another_vllm_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import vllm  # noqa: PLC0415

    monkeypatch.setattr(vllm, "__version__", "0.26.0")
    with pytest.raises(UserError, match=r"knows vLLM 0\.25\.1, and this is 0\.26\.0"):
        install()


def test_policies_do_not_change_under_requests(vllm_config: Any) -> None:
    core = start(vllm_config, {})
    core.add("r", None)
    with pytest.raises(UserError, match="1 requests wait or run"):
        bridge().set_policy(None)
    core.drain()
    with pytest.raises(UserError, match="eviction"):
        bridge().set_policy(PolicySettings.from_mapping({"eviction": {"_target_": "policies.nothing"}}))
    core.add("r", None)
    core.drain()
    assert core.num_tokens["r"] == 8, "bad settings leave everything as it is"


def test_policies_change_between_runs_of_one_engine(vllm_config: Any, adapters: Path) -> None:
    core = start(vllm_config, {})
    prefetch, fast = {"prefetch": ARRIVALS}, {"swaps": "one_piece"}
    for settings in ({}, None, {"host_eviction": LRU}, prefetch, fast, None, prefetch | fast, {}, fast):
        bridge().set_policy(None if settings is None else PolicySettings.from_mapping(settings))
        for number in range(1, 7):
            core.add(f"r{number}", lora_request(f"a{number}", number, adapters / f"a{number}"))
        core.drain()
        assert {str(end.finish_reason) for end in core.ends.values()} == {"length"}
        assert len(core.ends) == 6
        core.ends.clear()


def test_what_the_loader_reads_is_what_vllm_reads(vllm_config: Any, tmp_path: Path) -> None:
    import torch  # noqa: PLC0415
    from vllm.lora.worker_manager import LRUCacheWorkerLoRAManager  # noqa: PLC0415

    core = start(vllm_config, {"prefetch": ARRIVALS})
    engine = configured(vllm_config, ENGINE)
    engine.lora_config.lora_dtype = torch.bfloat16
    plain = make_manager(engine, LRUCacheWorkerLoRAManager)
    for number, (alpha, form) in enumerate(
        [(8, "bfloat16"), (16, "bfloat16"), (16, "float32"), (4, "bin")], 1
    ):
        write_as(tmp_path / str(number), alpha, form)
        request = lora_request(f"a{number}", number, tmp_path / str(number))
        core.add(f"r{number}", request)
        core.drain()
        plain.add_adapter(request)
        ours, theirs = slot_tensors(core.worker.lora_manager, number), slot_tensors(plain, number)
        assert len(ours) == len(theirs) > 0
        assert all(torch.equal(our, their) for our, their in zip(ours, theirs, strict=True)), (alpha, form)
        assert any(tensor.abs().sum() > 0 for tensor in ours)


@pytest.mark.parametrize("prefetch", [None, ARRIVALS])
def test_slots_filled_in_one_piece_hold_what_vllm_puts_there(
    vllm_config: Any, tmp_path: Path, prefetch: Any
) -> None:
    import torch  # noqa: PLC0415
    from vllm.lora.worker_manager import LRUCacheWorkerLoRAManager  # noqa: PLC0415

    core = start(vllm_config, {"prefetch": prefetch, "swaps": "one_piece"})
    copies = core.worker.lora_manager._adapter_manager.blocks.copies
    replayed: list[str] = []
    replay = copies.replay
    copies.replay = lambda layout, *rest: (replayed.append(layout), replay(layout, *rest))
    engine = configured(vllm_config, ENGINE)
    engine.lora_config.lora_dtype = torch.bfloat16
    plain = make_manager(engine, LRUCacheWorkerLoRAManager)
    for turn in range(3):
        for number, (alpha, form, rank) in enumerate(
            [(8, "bfloat16", 8), (16, "bfloat16", 16), (16, "float32", 8), (4, "bin", 4), (8, "few", 16)], 1
        ):
            folder, lora_id = tmp_path / f"{number}-{turn}", 10 * turn + number
            write_as(folder, alpha, form, rank, seed=lora_id)
            request = lora_request(f"a{lora_id}", lora_id, folder)
            core.add(f"r{lora_id}", request)
            core.drain()
            plain.add_adapter(request)
            ours, theirs = slot_tensors(core.worker.lora_manager, lora_id), slot_tensors(plain, lora_id)
            assert all(torch.equal(our, their) for our, their in zip(ours, theirs, strict=True)), (turn, form)
            assert any(tensor.abs().sum() > 0 for tensor in ours)
    assert len(replayed) == 15 - len(set(replayed)), "only the first of a layout is vLLM's own"
    assert len(set(replayed)) > 1
    assert {str(end.finish_reason) for end in core.ends.values()} == {"length"}


def write_as(folder: Path, alpha: int, form: str, rank: int = 8, seed: int | None = None) -> None:
    """Write an adapter with another scaling, another type, in torch's own format, or with few modules."""
    import torch  # noqa: PLC0415
    from safetensors.torch import load_file, save_file  # noqa: PLC0415

    write_adapter(folder, SHAPE, rank=rank, seed=alpha if seed is None else seed)
    config, weights = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"lora_alpha": alpha}))
    if form == "float32":
        save_file({name: tensor.float() for name, tensor in load_file(weights).items()}, weights)
    elif form == "few":
        few = {
            name: tensor for name, tensor in load_file(weights).items() if "k_proj" in name or "down" in name
        }
        save_file(few, weights)
    elif form == "bin":
        torch.save(load_file(weights), folder / "adapter_model.bin")
        weights.unlink()


class Gate:
    """A loader whose work is seen only when the test lets it through."""

    def __init__(self, loader: Any) -> None:
        self.loader, self.is_open, self.started = loader, False, []  # type: ignore[var-annotated]

    def is_free(self) -> bool:
        return bool(self.loader.is_free())

    def start(self, key: str, folder: Path) -> None:
        self.started.append(key)
        self.loader.start(key, folder)

    def poll(self) -> list[Any]:
        return list(self.loader.poll()) if self.is_open else []


@pytest.fixture
def gates(monkeypatch: pytest.MonkeyPatch) -> list[Gate]:
    from calibrate.bridge.lora_managers import PolicyWorkerLoRAManager  # noqa: PLC0415

    made: list[Gate] = []
    make_loader = PolicyWorkerLoRAManager.make_loader

    def gated(manager: Any) -> Gate:
        made.append(Gate(make_loader(manager)))
        return made[-1]

    monkeypatch.setattr(PolicyWorkerLoRAManager, "make_loader", gated)
    return made


def test_a_request_whose_adapter_is_being_loaded_stalls_nobody(
    vllm_config: Any, adapters: Path, gates: list[Gate], monkeypatch: pytest.MonkeyPatch
) -> None:
    core = start(vllm_config, {"prefetch": ARRIVALS})
    monkeypatch.setattr(core.worker.lora_manager, "_load_adapter", None)  # The engine's thread loads nothing.
    gates[0].is_open = True
    core.add("first", lora_request("a1", 1, adapters / "a1"))
    core.drain()
    gates[0].is_open = False
    core.add("waits", lora_request("a2", 2, adapters / "a2"))
    core.add("cached", lora_request("a1", 1, adapters / "a1"), output=30)
    core.add("base", None, output=30)
    while not {"cached", "base"} <= core.ends.keys():
        core.step()
    assert "waits" not in core.ends and gates[0].started == ["a1", "a2"]
    assert len(core.core.scheduler.waiting) == 1
    gates[0].is_open = True
    core.drain()
    assert core.num_tokens["waits"] == 4


@pytest.mark.parametrize("swaps", SWAPS)
@pytest.mark.parametrize("name", [None, *PREFETCH])
def test_many_adapters_through_a_small_host_cache(
    vllm_config: Any, adapters: Path, monkeypatch: pytest.MonkeyPatch, name: str | None, swaps: str
) -> None:
    section = yaml.safe_load(Path(f"conf/prefetch/{name}.yaml").read_text()) if name else ARRIVALS
    core = start(vllm_config, {"prefetch": section, "swaps": swaps})
    monkeypatch.setattr(core.worker.lora_manager, "_load_adapter", None)
    for number in range(60):
        adapter = 1 + number * 7 % 8
        core.add(
            f"r{number}",
            lora_request(f"a{adapter}", adapter, adapters / f"a{adapter}"),
            output=1 + number % 5,
        )
    core.drain()
    assert {str(end.finish_reason) for end in core.ends.values()} == {"length"} and len(core.ends) == 60
    assert all(len({lora_id for lora_id in step.values() if lora_id}) <= 2 for step in core.worker.steps)
    assert len(core.worker.lora_manager.list_adapters()) == 3


def test_an_aborted_request_is_no_longer_held(vllm_config: Any, adapters: Path, gates: list[Gate]) -> None:
    core = start(vllm_config, {"prefetch": ARRIVALS})
    core.add("gone", lora_request("a1", 1, adapters / "a1"))
    core.step()
    core.core.abort_requests(["gone"])
    core.drain()
    gates[0].is_open = True
    core.add("stays", lora_request("a1", 1, adapters / "a1"))
    core.drain()
    assert set(core.ends) == {"stays"}


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("settings", [{"prefetch": ARRIVALS}, {"swaps": "one_piece"}])
def test_a_bad_adapter_fails_its_own_requests_in_every_way_of_loading(
    vllm_config: Any, adapters: Path, tmp_path: Path, kind: str, settings: dict[str, Any]
) -> None:
    write_adapter(tmp_path / "bad", SHAPE, rank=8, seed=1)
    core = start(vllm_config, settings)
    for number in range(1, 5):
        core.add(f"good-{number}", lora_request(f"a{number}", number, adapters / f"a{number}"))
    core.add("bad", lora_request("bad", 9, tmp_path / "bad"))  # And only then it goes bad.
    spoil(tmp_path / "bad", kind)
    core.drain()
    assert {name for name, end in core.ends.items() if str(end.finish_reason) == "error"} == {"bad"}
    assert len(core.ends) == 5


@pytest.mark.parametrize("failure", ["policy", "process"])
def test_when_prefetch_fails_the_engine_loads(
    vllm_config: Any, adapters: Path, failure: str, caplog: pytest.LogCaptureFixture
) -> None:
    broken = {"_target_": ODD + "FailsToWant", "after": 2}
    core = start(vllm_config, {"prefetch": broken if failure == "policy" else ARRIVALS})
    for number in range(1, 7):
        core.add(f"r{number}", lora_request(f"a{number}", number, adapters / f"a{number}"))
    core.step()
    if failure == "process":
        core.worker.lora_manager._adapter_manager.blocks.loader._process.kill()
    core.drain()
    assert {str(end.finish_reason) for end in core.ends.values()} == {"length"} and len(core.ends) == 6
    assert caplog.text.count("The prefetch policy failed") == 1
