"""Adapters broken in each way, found without their weights."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from calibrate.adapter_problems import check, is_targeted
from calibrate.check_adapters import main
from tests.refusal import refused

TARGETS = ["q_proj", "v_proj"]
Shape = tuple[int, ...]


def config_of(rank: int = 16, **changes: Any) -> dict[str, Any]:
    known = {"peft_type": "LORA", "r": rank, "lora_alpha": 32, "target_modules": TARGETS, "bias": "none"}
    return {"base_model_name_or_path": "org/base", **known, **changes}


def shapes_of(rank: int = 16, targets: list[str] | None = None, layers: int = 2) -> dict[str, Shape]:
    shapes: dict[str, Shape] = {}
    for layer in range(layers):
        for target in targets or TARGETS:
            prefix = f"base_model.model.model.layers.{layer}.self_attn.{target}"
            shapes |= {f"{prefix}.lora_A.weight": (rank, 8), f"{prefix}.lora_B.weight": (12, rank)}
    return shapes


def write(
    folder: Path,
    config: dict[str, Any] | str | None = None,
    shapes: dict[str, Shape] | None = None,
    dtype: Any = np.float16,
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    text = config if isinstance(config, str) else json.dumps(config_of() if config is None else config)
    (folder / "adapter_config.json").write_text(text)
    tensors = {name: np.zeros(shape, dtype) for name, shape in (shapes or shapes_of()).items()}
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def without(shapes: dict[str, Shape], ending: str) -> dict[str, Shape]:
    return {name: shape for name, shape in shapes.items() if not name.endswith(ending)}


GOOD: dict[str, tuple[dict[str, Any], dict[str, Shape]]] = {
    "as PEFT saves it": (config_of(), shapes_of()),
    "all linear": (config_of(target_modules="all-linear"), shapes_of()),
    "a pattern": (config_of(target_modules=r".*\.self_attn\.(q|v)_proj"), shapes_of()),
    "whole paths": (config_of(target_modules=["self_attn.q_proj", "self_attn.v_proj"]), shapes_of()),
    "without the prefix": (
        config_of(),
        {name.removeprefix("base_model.model."): shape for name, shape in shapes_of().items()},
    ),
    "the embedding too": (
        config_of(target_modules=[*TARGETS, "embed_tokens"]),
        shapes_of()
        | {
            "base_model.model.model.embed_tokens.lora_embedding_A": (16, 100),
            "base_model.model.model.embed_tokens.lora_embedding_B": (8, 16),
            "base_model.model.model.embed_tokens.base_layer.weight": (100, 8),
        },
    ),
    "a smaller rank": (config_of(8), shapes_of(8)),
}


@pytest.mark.parametrize("name", GOOD)
def test_a_good_adapter(tmp_path: Path, name: str) -> None:
    report = check(write(tmp_path / "a", *GOOD[name]), 16)
    assert report.problems == []
    assert report.tensor_ranks == [report.rank]
    assert report.size_bytes > 0


BROKEN: dict[str, tuple[dict[str, Any], dict[str, Shape], str]] = {
    "another rank in the tensors": (
        config_of(16),
        shapes_of(8),
        "r=16, by which vLLM scales lora_alpha, but tensors of rank 8: model.layers.0.self_attn.q_proj, "
        "model.layers.0.self_attn.v_proj, model.layers.1.self_attn.q_proj and 1 more",
    ),
    "one module of another rank": (
        config_of(16),
        shapes_of() | shapes_of(4, ["v_proj"], 1),
        "r=16, by which vLLM scales lora_alpha, but tensors of rank 4: model.layers.0.self_attn.v_proj",
    ),
    "two ranks in a module": (
        config_of(),
        shapes_of() | {"base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight": (12, 8)},
        "lora_A and lora_B of different ranks: model.layers.0.self_attn.q_proj",
    ),
    "too large a rank": (config_of(64), shapes_of(64), "r=64: more than max_lora_rank=16"),
    "too large in the tensors": (
        config_of(16),
        shapes_of(64),
        "tensors of rank 64: more than max_lora_rank=16",
    ),
    "A alone": (
        config_of(),
        without(shapes_of(), "0.self_attn.q_proj.lora_B.weight"),
        "only one of lora_A and lora_B: model.layers.0.self_attn.q_proj",
    ),
    "a module too many": (
        config_of(),
        shapes_of(targets=[*TARGETS, "o_proj"]),
        "tensors of modules that are not in target_modules: o_proj",
    ),
    "a module too few": (
        config_of(target_modules=[*TARGETS, "k_proj", "o_proj"]),
        shapes_of(),
        "target_modules without tensors: k_proj, o_proj",
    ),
    "a pattern of other modules": (
        config_of(target_modules=".*mlp.*"),
        shapes_of(),
        "tensors of modules that are not in target_modules: q_proj, v_proj",
    ),
    "DoRA's tensors": (
        config_of(use_dora=True),
        shapes_of() | {"base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector": (12,)},
        "no LoRA tensors: base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector",
    ),
    "DoRA": (config_of(use_dora=True), shapes_of(), "use_dora: vLLM does not serve DoRA"),
    "whole modules": (config_of(modules_to_save=["lm_head"]), shapes_of(), "modules_to_save=['lm_head']"),
    "biases": (config_of(bias="all"), shapes_of(), "bias='all'"),
    "another method": (config_of(peft_type="IA3"), shapes_of(), "peft_type='IA3': expected 'LORA'"),
    "a rank that is none": (config_of(r="16"), shapes_of(), "r='16': expected a rank of 1 or more"),
    "no rank": ({"lora_alpha": 1, "target_modules": TARGETS}, shapes_of(), "r=None: expected a rank"),
    "no alpha": (config_of(lora_alpha=None), shapes_of(), "lora_alpha=None: expected a number"),
    "no targets": (config_of(target_modules=None), shapes_of(), "target_modules=None: expected names"),
    "a pattern that is none": (config_of(target_modules="("), shapes_of(), "target_modules='(': expected"),
    "ranks by pattern": (
        config_of(rank_pattern={"q_proj": 8}),
        shapes_of() | shapes_of(8, ["q_proj"]),
        "rank_pattern={'q_proj': 8}: vLLM ignores it",
    ),
    "a vector": (
        config_of(),
        shapes_of() | {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": (16,)},
        "no matrices, or empty ones: model.layers.0.self_attn.q_proj",
    ),
    "nothing of LoRA": (config_of(), {"model.weight": (2, 2)}, "no LoRA tensors in the file"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_adapter(tmp_path: Path, name: str) -> None:
    config, shapes, expected = BROKEN[name]
    problems = check(write(tmp_path / "a", config, shapes), 16).problems
    assert any(problem.startswith(expected) for problem in problems), problems


def test_ranks_by_pattern_are_no_mismatch_besides(tmp_path: Path) -> None:
    config, shapes, _ = BROKEN["ranks by pattern"]
    assert len(check(write(tmp_path / "a", config, shapes), 16).problems) == 1


def test_tensors_of_integers(tmp_path: Path) -> None:
    (problem,) = check(write(tmp_path / "a", dtype=np.int8), 16).problems
    assert problem.startswith("tensors of type I8: expected")


def test_without_a_limit_any_rank_is_good(tmp_path: Path) -> None:
    assert check(write(tmp_path / "a", config_of(512), shapes_of(512)), None).problems == []


CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@pytest.mark.parametrize(
    ("file", "damage", "expected"),
    [
        (WEIGHTS, lambda raw: raw[:-7], f"{WEIGHTS} is corrupt: "),
        (WEIGHTS, lambda raw: raw + b"more", f"{WEIGHTS} is corrupt: "),
        (WEIGHTS, lambda raw: raw[:20], f"{WEIGHTS} is corrupt: "),
        (WEIGHTS, lambda raw: b"\xff" * 100, f"{WEIGHTS} is corrupt: "),
        (WEIGHTS, lambda raw: b"", f"{WEIGHTS} is corrupt: "),
        (WEIGHTS, None, f"{WEIGHTS} is missing"),
        (CONFIG, None, f"{CONFIG} is missing"),
        (CONFIG, lambda raw: raw[:-1], f"{CONFIG} cannot be read: "),
        (CONFIG, lambda raw: b"\xff" + raw, f"{CONFIG} cannot be read: "),
        (CONFIG, lambda raw: b"[]", f"{CONFIG} is no JSON object"),
    ],
)
def test_a_damaged_file(
    tmp_path: Path, file: str, damage: Callable[[bytes], bytes] | None, expected: str
) -> None:
    damaged = write(tmp_path / "a") / file
    if damage is None:
        damaged.unlink()
    else:
        damaged.write_bytes(damage(damaged.read_bytes()))
    (problem,) = check(tmp_path / "a", 16).problems
    assert problem.startswith(expected)


def test_weights_of_another_format_are_named(tmp_path: Path) -> None:
    (write(tmp_path / "a") / WEIGHTS).rename(tmp_path / "a" / "adapter_model.bin")
    (problem,) = check(tmp_path / "a", 16).problems
    assert problem.startswith(f"{WEIGHTS} is missing; adapter_model.bin cannot be checked")


def test_targets_are_whole_names() -> None:
    assert is_targeted("model.layers.0.q_proj", ["q_proj"])
    assert not is_targeted("model.layers.0.my_q_proj", ["q_proj"])
    assert is_targeted("q_proj", ["q_proj"])


def run(monkeypatch: pytest.MonkeyPatch, folder: Path, *words: str) -> int:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["calibrate.check_adapters", *words])
    try:
        main()
    except SystemExit as exit_:
        return int(str(exit_.code))
    return 0


def test_a_folder_of_adapters(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "all" / "good")
    write(tmp_path / "all" / "mixed", config_of(8, base_model_name_or_path="org/other"), shapes_of(4))
    (tmp_path / "all" / "nothing").mkdir()
    (tmp_path / "all" / ".cache").mkdir()
    assert run(monkeypatch, tmp_path, "dir=all", "out=checked.json") == 1
    assert (
        capsys.readouterr().out
        == """\
Adapter     r  Tensor ranks  Modules        Size  Status
--------------------------------------------------------
good       16            16        4      0.0 MB  ok
mixed       8             4        4      0.0 MB  BAD
    r=8, by which vLLM scales lora_alpha, but tensors of rank 4: model.layers.0.self_attn.q_proj, \
model.layers.0.self_attn.v_proj, model.layers.1.self_attn.q_proj and 1 more
nothing     -             -        0      0.0 MB  BAD
    adapter_config.json is missing
    adapter_model.safetensors is missing

3 adapters, 2 bad
mixed ranks: 1 of rank 8, 1 of rank 16; vLLM's slots are all as large as max_lora_rank
several base models: 1 of org/base, 1 of org/other; one engine serves one
"""
    )
    found = json.loads((tmp_path / "checked.json").read_text())
    assert [bool(adapter["problems"]) for adapter in found["adapters"]] == [False, True, True]


def test_one_good_adapter_by_itself(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write(tmp_path / "one", config_of(64), shapes_of(64))
    assert run(monkeypatch, tmp_path, "dir=one") == 1
    assert run(monkeypatch, tmp_path, "dir=one", "max_lora_rank=64") == 0
    assert run(monkeypatch, tmp_path, "dir=one", "max_lora_rank=null") == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "dir: not given"),
        (["dir=none"], "dir=none: no such folder"),
        (["dir=."], "dir=.: no adapters in it"),
        (["dir=.", "max_lora_rank=0"], "max_lora_rank=0: expected a rank"),
    ],
)
def test_what_a_user_gets_wrong(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    words: list[str],
    message: str,
) -> None:
    prog = "calibrate.check_adapters"
    assert message in refused(monkeypatch, capsys, tmp_path, words, main=main, prog=prog)
