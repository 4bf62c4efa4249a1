"""Ask a server for adapters that cannot be served, among others: `python -m calibrate.bad_adapters`.

The server is that of `calibrate.served_model`, whose adapters are folders here; some are spoilt first.
"""

import json
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from sim.cli import hydra_entry
from sim.errors import UserError
from sim.fields import plain_values
from sim.files import write_atomically
from sim.workload import adapter_name

PROMPT = " ".join(f"w{number}" for number in range(100, 164))
TIMEOUT_S = 120


def remove(folder: Path) -> None:
    """Leave nothing."""
    folder.unlink()


def cut_off(folder: Path) -> None:
    """Leave the first megabyte of the tensors."""
    _own(folder)
    tensors = folder / "adapter_model.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:1_000_000])


def claim_rank_64(folder: Path) -> None:
    """Leave a configuration of a rank that the server does not take."""
    _own(folder)
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"r": 64}))


SPOILT: dict[str, Callable[[Path], None]] = {
    "missing": remove,
    "truncated": cut_off,
    "rank 64": claim_rank_64,
}


def _own(folder: Path) -> None:
    """Put a copy in place of the link to the files that adapters share."""
    shared = folder.resolve()
    folder.unlink()
    shutil.copytree(shared, folder)


def post(url: str, body: dict[str, Any]) -> tuple[int, str]:
    """Return the status and what is said of an error. Raises UserError where nobody answers."""
    data, headers = json.dumps(body).encode(), {"Content-Type": "application/json"}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=TIMEOUT_S) as answer:
            return answer.status, ""
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(errors="replace")
    except OSError as error:
        raise UserError(f"endpoint={url}: {error}; expected a server that answers") from error


def ask(endpoint: str, adapter: str, bad: str | None = None) -> dict[str, Any]:
    """Ask one adapter for 32 tokens; returns what came of it."""
    body = {"model": adapter, "prompt": PROMPT, "max_tokens": 32, "temperature": 0, "ignore_eos": True}
    status, message = post(f"{endpoint}/v1/completions", body)
    return {"adapter": adapter, "bad": bad, "status": status, "message": message}


def task(cfg: DictConfig) -> None:
    """Spoil the last adapters, ask for them and for good ones at once, and then for one more."""
    config = plain_values(cfg)
    folder, endpoint, good = Path(config["adapters_dir"]), config["endpoint"], config["good"]
    names = sorted(path.name for path in folder.glob("adapter-*"))
    if len(names) < good + 1 + len(SPOILT):
        raise UserError(
            f"adapters_dir={folder}: {len(names)} adapters; expected {good + 1 + len(SPOILT)} or more"
        )
    spoilt = dict(zip(names[-len(SPOILT) :], SPOILT, strict=True))
    for name, kind in spoilt.items():
        if not (folder / name).is_symlink():
            raise UserError(
                f"{folder / name}: no link; expected adapters of calibrate.served_model, unspoilt"
            )
        SPOILT[kind](folder / name)
    if config["policy"] is not None:  # From empty caches, so that the spoilt ones are read.
        post(f"{endpoint}/collective_rpc", {"method": "switch_policies", "args": [config["policy"]]})
    asked: list[tuple[str, str | None]] = [(adapter_name(number), None) for number in range(good)]
    asked += [*spoilt.items(), *spoilt.items()]
    with ThreadPoolExecutor(len(asked)) as pool:
        rows = list(pool.map(lambda one: ask(endpoint, *one), asked))
    after = ask(endpoint, names[good])
    result = {"requests": rows, "after": after}
    write_atomically(Path(config["out"]), json.dumps(result, indent=1).encode())
    answered = sum(row["status"] == 200 for row in rows if row["bad"] is None)
    print(f"{answered} of {good} good requests answered; one more: {after['status']}")
    print(f"written to {config['out']}")


def main() -> None:
    """Entry point."""
    hydra_entry(task, "bad_adapters", "calibrate.bad_adapters")


if __name__ == "__main__":
    main()
