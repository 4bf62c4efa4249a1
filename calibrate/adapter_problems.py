"""What is wrong with a PEFT adapter: its configuration against its tensors, and against what vLLM serves."""

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from calibrate.peft_adapter import (
    WEIGHTS_FILE,
    BadFile,
    LoraModule,
    Tensor,
    lora_modules,
    read_config,
    read_tensors,
)

FLOATS = ("F64", "F32", "F16", "BF16")
SHOWN = 3


@dataclass
class Report:
    """What a folder holds and what is wrong with it."""

    name: str
    base_model: str | None = None
    rank: int | None = None
    """`r` of the configuration."""
    tensor_ranks: list[int] = field(default_factory=list)
    modules: int = 0
    size_bytes: int = 0
    problems: list[str] = field(default_factory=list)


def check(folder: Path, max_lora_rank: int | None) -> Report:
    """Check one adapter, without its weights. `max_lora_rank` is vLLM's flag, null for no limit."""
    report = Report(folder.name)
    config: Mapping[str, Any] | None = None
    try:
        config = read_config(folder)
    except BadFile as error:
        report.problems.append(str(error))
    tensors: dict[str, Tensor] | None = None
    try:
        tensors = read_tensors(folder)
        report.size_bytes = (folder / WEIGHTS_FILE).stat().st_size
    except BadFile as error:
        report.problems.append(str(error))
    if config is not None:
        base = config.get("base_model_name_or_path")
        report.base_model = base if isinstance(base, str) else None
        report.rank = _rank(config)
        report.problems += config_problems(config, max_lora_rank)
    if tensors is not None:
        modules, refused = lora_modules(tensors)
        report.modules = len(modules)
        report.tensor_ranks = sorted({rank for module in modules.values() for rank in ranks_of(module)})
        report.problems += tensor_problems(tensors, modules, refused)
        if config is not None:
            report.problems += mismatches(config, modules)
        if max_lora_rank is not None and report.tensor_ranks and report.tensor_ranks[-1] > max_lora_rank:
            report.problems.append(
                f"tensors of rank {report.tensor_ranks[-1]}: more than max_lora_rank={max_lora_rank}"
            )
    return report


def config_problems(config: Mapping[str, Any], max_lora_rank: int | None) -> list[str]:
    """Return what vLLM refuses, or silently serves otherwise than PEFT, in a configuration."""
    problems = []
    if config.get("peft_type", "LORA") != "LORA":
        problems.append(f"peft_type={config['peft_type']!r}: expected 'LORA'")
    rank = _rank(config)
    if rank is None:
        problems.append(f"r={config.get('r')!r}: expected a rank of 1 or more")
    elif max_lora_rank is not None and rank > max_lora_rank:
        problems.append(f"r={rank}: more than max_lora_rank={max_lora_rank}")
    alpha = config.get("lora_alpha")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float):
        problems.append(f"lora_alpha={alpha!r}: expected a number")
    if not _is_target(config.get("target_modules")):
        problems.append(f"target_modules={config.get('target_modules')!r}: expected names or a pattern")
    if config.get("use_dora"):
        problems.append("use_dora: vLLM does not serve DoRA")
    if config.get("modules_to_save"):
        problems.append(f"modules_to_save={config['modules_to_save']}: vLLM does not serve whole modules")
    if config.get("bias", "none") != "none":
        problems.append(f"bias={config['bias']!r}: vLLM does not serve adapter biases")
    for name in ("rank_pattern", "alpha_pattern"):
        if config.get(name):
            problems.append(
                f"{name}={config[name]}: vLLM ignores it and scales every module by lora_alpha / r"
            )
    return problems


def tensor_problems(
    tensors: Mapping[str, Tensor], modules: Mapping[str, LoraModule], refused: Sequence[str]
) -> list[str]:
    """Return what is wrong with the tensors by themselves."""
    problems = []
    if refused:
        problems.append(f"no LoRA tensors: {_some(refused)}")
    if not modules:
        problems.append("no LoRA tensors in the file")
    dtypes = Counter(tensor.dtype for tensor in tensors.values() if tensor.dtype not in FLOATS)
    if dtypes:
        problems.append(f"tensors of type {', '.join(sorted(dtypes))}: expected {', '.join(FLOATS)}")
    halves = [name for name, module in modules.items() if module.a is None or module.b is None]
    if halves:
        problems.append(f"only one of lora_A and lora_B: {_some(halves)}")
    flat = [name for name, module in modules.items() if not _is_matrices(module)]
    if flat:
        problems.append(f"no matrices, or empty ones: {_some(flat)}")
    uneven = [name for name, module in modules.items() if len(set(ranks_of(module))) > 1]
    if uneven:
        problems.append(f"lora_A and lora_B of different ranks: {_some(uneven)}")
    return problems


def mismatches(config: Mapping[str, Any], modules: Mapping[str, LoraModule]) -> list[str]:
    """Return where the configuration and the tensors say different things."""
    problems = []
    rank, target = _rank(config), config.get("target_modules")
    for found, names in _other_ranks(modules, rank, config.get("rank_pattern")).items():
        problems.append(
            f"r={rank}, by which vLLM scales lora_alpha, but tensors of rank {found}: {_some(names)}"
        )
    if target is None or not _is_target(target) or target == "all-linear":
        return problems
    strays = [name for name in modules if not is_targeted(name, target)]
    if strays:
        problems.append(f"tensors of modules that are not in target_modules: {_some(_endings(strays))}")
    if isinstance(target, list):
        absent = [one for one in target if not any(is_targeted(name, [one]) for name in modules)]
        if absent and modules:
            problems.append(f"target_modules without tensors: {_some(sorted(absent))}")
    return problems


def is_targeted(module: str, target: str | Collection[str]) -> bool:
    """Say whether PEFT's `target_modules` mean `module`: a pattern of the whole path, or names at its end.

    check_target_module_exists in peft/tuners/tuners_utils.py.
    """
    if isinstance(target, str):
        return re.fullmatch(target, module) is not None
    return any(module == name or module.endswith(f".{name}") for name in target)


def ranks_of(module: LoraModule) -> list[int]:
    """Return the rank that each of the module's matrices has."""
    matrices = ((module.a, 0), (module.b, 1))
    return [tensor.shape[side] for tensor, side in matrices if tensor is not None and len(tensor.shape) == 2]


def _other_ranks(
    modules: Mapping[str, LoraModule], rank: int | None, rank_pattern: Any
) -> dict[int, list[str]]:
    """Modules whose tensors have another rank than `r`, or than the pattern that PEFT goes by, by rank."""
    others: dict[int, list[str]] = {}
    if rank is None:
        return others
    patterns = rank_pattern if isinstance(rank_pattern, dict) else {}
    patterns = {key: own for key, own in patterns.items() if _compiles(key)}
    for name, module in modules.items():
        own = (own for key, own in patterns.items() if re.fullmatch(rf"(.*\.)?({key})", name))
        expected = next(own, rank)
        for found in dict.fromkeys(ranks_of(module)):
            if found not in (expected, 0):
                others.setdefault(found, []).append(name)
    return others


def _rank(config: Mapping[str, Any]) -> int | None:
    rank = config.get("r")
    return rank if type(rank) is int and rank > 0 else None


def _is_target(target: Any) -> bool:
    if isinstance(target, str):
        return bool(target) and _compiles(target)
    return isinstance(target, list) and bool(target) and all(isinstance(name, str) for name in target)


def _compiles(pattern: str) -> bool:
    try:
        re.compile(pattern)
    except re.error:
        return False
    return True


def _is_matrices(module: LoraModule) -> bool:
    tensors = [tensor for tensor in (module.a, module.b) if tensor is not None]
    return all(len(tensor.shape) == 2 and min(tensor.shape) > 0 for tensor in tensors)


def _endings(modules: Sequence[str]) -> list[str]:
    return sorted({name.rpartition(".")[2] for name in modules})


def _some(names: Sequence[str]) -> str:
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")
