"""A model without weights for `vllm serve`: `python -m calibrate.served_model`.

Its tokenizer has a word for each token (`w0 w1 w2 ...`), so that the server tokenises and detokenises as it
would, without anybody's vocabulary. Beside it lie synthetic adapters; the command to serve them is printed.
"""

import json
import shlex
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from calibrate.adapters import require_torch, write_adapter
from calibrate.engine import hugging_face_config
from sim.cli import hydra_entry
from sim.errors import UserError
from sim.files import write_atomically

SPECIAL = {"unk_token": "<unk>", "eos_token": "<eos>"}


def write_model(folder: Path, model: dict[str, Any]) -> None:
    """Write `config.json` and the tokenizer of words."""
    write_atomically(folder / "config.json", json.dumps(hugging_face_config(model)).encode())
    # Special tokens are found within words too, so they must not look like the beginning of one.
    words = [*(f"w{number}" for number in range(model["vocab_size"] - len(SPECIAL))), *SPECIAL.values()]
    tokenizer: dict[str, Any] = {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        "decoder": None,
        "model": {
            "type": "WordLevel",
            "vocab": {word: number for number, word in enumerate(words)},
            "unk_token": SPECIAL["unk_token"],
        },
    }
    write_atomically(folder / "tokenizer.json", json.dumps(tokenizer).encode())
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **SPECIAL}
    write_atomically(folder / "tokenizer_config.json", json.dumps(config).encode())


def write_adapters(folder: Path, model: dict[str, Any], rank: int, names: list[str], num_files: int) -> None:
    """Write `num_files` adapters, and a link to one of them, in turn, for each name."""
    files = [folder / f"file{number}" for number in range(num_files)]
    for seed, file in enumerate(files):
        if not (file / "adapter_config.json").exists():
            write_adapter(file, model, rank, seed)
    for number, name in enumerate(names):
        link = folder / name
        if not link.is_symlink():
            link.symlink_to(files[number % num_files].name)


def command(folder: Path, names: list[str], settings: dict[str, Any]) -> list[str]:
    """Return the `vllm serve` command; `settings` are its flags."""
    flags = [f"--{key.replace('_', '-')}={value}" for key, value in settings.items()]
    modules = [f"{name}={folder / 'adapters' / name}" for name in names]
    model = ["vllm", "serve", str(folder), "--served-model-name=base", "--load-format=dummy", "--enable-lora"]
    return [*model, *flags, "--lora-modules", *modules]


def task(cfg: DictConfig) -> None:
    """Write model, adapters, and the command in a file `serve.sh`."""
    config: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    folder, model = Path(config["out"]).absolute(), config["model"]
    if not 1 <= config["adapter_files"] <= config["adapters"]:
        raise UserError(
            f"adapter_files={config['adapter_files']}: expected 1 to adapters={config['adapters']}"
        )
    require_torch()
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"adapter-{number:04d}" for number in range(config["adapters"])]
    write_model(folder, model)
    (folder / "adapters").mkdir(exist_ok=True)
    rank = config["engine"]["max_lora_rank"]
    write_adapters(folder / "adapters", model, rank, names, config["adapter_files"])
    line = shlex.join(command(folder, names, config["engine"]))
    write_atomically(folder / "serve.sh", f'#!/bin/sh\nexec {line} "$@"\n'.encode())
    print(f"{model['name']} with {len(names)} adapters of rank {rank}: sh {folder / 'serve.sh'}")


def main() -> None:
    """Entry point."""
    hydra_entry(task, "served_model", "calibrate.served_model")


if __name__ == "__main__":
    main()
