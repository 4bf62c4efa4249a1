"""The loader's process: reads adapters into shared memory, one after another, as the engine asks for them.

A line of JSON in, a line out. It ends with its standard input, and so with the engine.
"""

import json
import os
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from calibrate.bridge.adapter_file import AdapterError
from calibrate.bridge.read_weights import layout_of, read_adapter
from calibrate.bridge.shared_blocks import SharedBlocks, attached


def answer(
    job: dict[str, Any], blocks: SharedBlocks, dtype: str, max_lora_rank: int, told: set[str]
) -> dict[str, Any]:
    """Do one job, `{"key", "folder", "block"}`; returns the fields of `Loaded`.

    The entries of a layout that was `told` already are left out: there are hundreds, and mostly the same.
    """
    start = time.perf_counter()
    reply: dict[str, Any] = {"key": job["key"], "block": job["block"]}
    try:
        config, entries = read_adapter(
            Path(job["folder"]), blocks.bytes_of(job["block"]), dtype, max_lora_rank
        )
        layout = layout_of(entries)
        reply |= {"config": config, "layout": layout}
        if layout not in told:
            told.add(layout)
            reply["entries"] = entries
    except AdapterError as error:
        reply["error"] = str(error)
    except Exception as error:  # One adapter, whatever is wrong with it.
        reply["error"] = f"{type(error).__name__}: {error}"
    return reply | {"seconds": time.perf_counter() - start}


def _import_torch() -> None:
    """Which takes seconds, and is needed only for adapters that have to be converted or scaled."""
    with suppress(ImportError):
        import torch  # noqa: F401


def main() -> None:
    """Serve until standard input ends. Arguments: fd, blocks, bytes of a block, dtype, max_lora_rank."""
    fd, num_blocks, block_bytes, dtype, max_lora_rank = sys.argv[1:]
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.nice(5)  # The engine's thread comes first where processors are scarce.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # Whatever a library prints is no answer.
    threading.Thread(target=_import_torch, daemon=True).start()
    blocks = attached(int(fd), int(num_blocks), int(block_bytes))
    told: set[str] = set()
    for line in sys.stdin:
        reply = answer(json.loads(line), blocks, dtype, int(max_lora_rank), told)
        print(json.dumps(reply), file=answers, flush=True)


if __name__ == "__main__":
    main()
