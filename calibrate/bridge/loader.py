"""The engine's end of the loader: a process of its own, since threads would share the engine's GIL."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from calibrate.bridge.adapter_file import TensorEntry
from calibrate.bridge.loaded import Loaded, LoaderDied
from calibrate.bridge.shared_blocks import SharedBlocks

READ_BYTES = 1 << 20
JOBS = 2


def _always() -> bool:
    return True


class AdapterLoader:
    """Loads adapters, one after another, into free blocks of `blocks`.

    It takes JOBS at once, so that its process need not wait for the engine, which comes by between two steps.
    A block is the adapter's until `release`, and is written again once the `is_idle` given there holds: on a
    GPU, when the copies out of it are done. Nothing here waits.
    """

    def __init__(self, blocks: SharedBlocks, dtype: str, max_lora_rank: int) -> None:
        self._blocks, self._dtype, self._max_lora_rank = blocks, dtype, max_lora_rank
        self._free = list(range(blocks.num_blocks))
        self._draining: list[tuple[int, Callable[[], bool]]] = []
        self._loading: list[int] = []
        self._partial = b""
        self._entries: dict[str, list[TensorEntry]] = {}
        self._process: subprocess.Popen[bytes] | None = None

    def _start_process(self) -> "subprocess.Popen[bytes]":
        blocks = self._blocks
        arguments = (blocks.fd, blocks.num_blocks, blocks.block_bytes, self._dtype, self._max_lora_rank)
        paths = [str(Path(path).absolute()) for path in sys.path]
        process = subprocess.Popen(
            [sys.executable, "-m", "calibrate.bridge.loader_process", *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[blocks.fd],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "CUDA_VISIBLE_DEVICES": ""},
        )
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)
        return process

    def revive(self) -> None:
        """Start the process, if it has not been started yet, or has ended."""
        if self._process is None or self._process.poll() is not None:
            self._free += self._loading
            self._loading, self._partial = [], b""
            self.close()
            self._process = self._start_process()

    def is_free(self) -> bool:
        """Whether `start` may be called: not too much is being loaded, and there is a block to load into."""
        return len(self._loading) < JOBS and self._has_block()

    def take(self) -> int | None:
        """Return a block for the caller to fill, which is as one that was loaded; None: none is free."""
        return self._free.pop() if self._has_block() else None

    def _has_block(self) -> bool:
        self._free += [block for block, is_idle in self._draining if is_idle()]
        self._draining = [(block, is_idle) for block, is_idle in self._draining if block not in self._free]
        return bool(self._free)

    def start(self, key: str, folder: Path) -> None:
        """Begin to load an adapter. Raises LoaderDied."""
        if self._process is None:
            self.revive()
        block = self._free.pop()
        self._loading.append(block)
        job = {"key": key, "folder": str(folder.absolute()), "block": block}
        assert self._process is not None and self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(job).encode() + b"\n")
            self._process.stdin.flush()
        except OSError as error:
            raise LoaderDied(f"the loader's process has ended: {error}") from None

    def poll(self) -> list[Loaded]:
        """Return what has been loaded, or has failed, since the last call. Raises LoaderDied."""
        while self._loading:
            assert self._process is not None and self._process.stdout is not None
            try:
                read = os.read(self._process.stdout.fileno(), READ_BYTES)
            except BlockingIOError:
                break
            if not read:
                raise LoaderDied(f"the loader's process has ended with status {self._process.wait()}")
            self._partial += read
        *lines, self._partial = self._partial.split(b"\n")
        return [self._taken(_from_line(line)) for line in lines]

    def _taken(self, loaded: Loaded) -> Loaded:
        self._loading.remove(loaded.block)
        if loaded.error is not None:
            self._free.append(loaded.block)
        else:
            loaded.entries = self._entries.setdefault(loaded.layout, loaded.entries)
        return loaded

    def release(self, block: int, is_idle: Callable[[], bool] = _always) -> None:
        """Give a block back, to be used again when `is_idle` holds."""
        self._draining.append((block, is_idle))

    def close(self) -> None:
        """End the process; what it was loading is lost."""
        if self._process is None:
            return
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            with suppress(BrokenPipeError):  # What was written for a process that is gone.
                stream.close()  # type: ignore[union-attr]


def _from_line(line: bytes) -> Loaded:
    try:
        fields = json.loads(line)
        entries = [
            TensorEntry(name, dtype, tuple(shape), begin, end)
            for name, dtype, shape, begin, end in fields.pop("entries", ())
        ]
        return Loaded(**fields, entries=entries)
    except (ValueError, TypeError) as error:
        raise LoaderDied(f"the loader's process answers {line[:100]!r}: {error}") from None
