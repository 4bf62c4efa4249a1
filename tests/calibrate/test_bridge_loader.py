"""The loader's process: adapters into shared memory, byte for byte."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from calibrate.bridge.loaded import Loaded, LoaderDied
from calibrate.bridge.loader import JOBS, AdapterLoader
from calibrate.bridge.shared_blocks import SharedBlocks
from tests.calibrate.test_bridge_adapter_files import CONFIG, write


@pytest.fixture
def blocks() -> Iterator[SharedBlocks]:
    made = SharedBlocks(2, 200)
    yield made
    made.close()


@pytest.fixture
def loader(blocks: SharedBlocks) -> Iterator[AdapterLoader]:
    made = AdapterLoader(blocks, "BF16", max_lora_rank=8)
    yield made
    made.close()


def result(loader: AdapterLoader) -> Loaded:
    for _ in range(3000):
        for loaded in loader.poll():
            return loaded
        time.sleep(0.01)
    raise AssertionError("nothing was loaded")


def test_the_weights_are_those_of_the_file(
    tmp_path: Path, blocks: SharedBlocks, loader: AdapterLoader
) -> None:
    folder = write(tmp_path / "a")
    loader.start("a", folder)
    loaded = result(loader)
    assert (loaded.key, loaded.error, loaded.config) == ("a", None, CONFIG)
    data = (folder / "adapter_model.safetensors").read_bytes()[-160:]
    assert bytes(blocks.bytes_of(loaded.block))[:160] == data
    assert [entry.shape for entry in loaded.entries] == [(8, 4), (6, 8)]
    assert loaded.seconds > 0


def test_a_block_is_used_again_when_it_is_idle(tmp_path: Path, loader: AdapterLoader) -> None:
    folder, idle = write(tmp_path / "a"), [False]
    used = []
    for _ in range(2):
        assert loader.is_free()
        loader.start("a", folder)
        used.append(result(loader).block)
    assert set(used) == {0, 1} and not loader.is_free()
    loader.release(used[0], lambda: idle[0])
    assert not loader.is_free(), "a copy out of it may be under way"
    idle[0] = True
    assert loader.is_free()
    loader.start("a", folder)
    assert result(loader).block == used[0]


def test_what_is_given_ahead_is_loaded_in_turn(tmp_path: Path) -> None:
    blocks = SharedBlocks(JOBS + 1, 200)
    loader = AdapterLoader(blocks, "BF16", max_lora_rank=8)
    try:
        for number in range(JOBS):
            assert loader.is_free()
            loader.start(str(number), write(tmp_path / str(number)))
        assert not loader.is_free(), "though there is a block"
        loaded: list[Loaded] = []
        while len(loaded) < JOBS:
            loaded += loader.poll()
        assert [one.key for one in loaded] == [str(number) for number in range(JOBS)]
        assert len({one.block for one in loaded}) == JOBS and loader.is_free()
        assert all(one.entries == loaded[0].entries for one in loaded), "told once, known for all"
    finally:
        loader.close()


def test_a_bad_adapter_costs_no_block(tmp_path: Path, loader: AdapterLoader) -> None:
    large = write(tmp_path / "large", shapes={"lora_A": (8, 400), "lora_B": (6, 8)})
    for folder, message in ((tmp_path / "none", "No such file"), (large, "6496 bytes of weights")):
        for _ in range(3):
            assert loader.is_free()
            loader.start("a", folder)
            assert message in (result(loader).error or "")


def test_the_end_of_the_process_is_noticed_and_mended(tmp_path: Path, loader: AdapterLoader) -> None:
    loader.revive()
    assert loader._process is not None
    loader._process.kill()
    loader._process.wait()
    with pytest.raises(LoaderDied, match="ended"):
        loader.start("a", write(tmp_path / "a"))
        result(loader)
    loader.revive()
    assert loader.is_free()
    loader.start("a", tmp_path / "a")
    assert result(loader).error is None


def test_shared_blocks_begin_on_pages() -> None:
    blocks = SharedBlocks(3, 5000)
    assert blocks.block_bytes == 8192 and blocks.num_bytes == 3 * 8192
    blocks.bytes_of(1)[0] = 7
    assert blocks.bytes_of(1)[0] == 7 and blocks.bytes_of(0)[0] == blocks.bytes_of(2)[0] == 0
    blocks.close()
