"""What the bridge sees in an adapter's files without reading weights."""

import json
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from calibrate.bridge.adapter_check import AdapterCheck
from calibrate.bridge.adapter_file import AdapterError, check_adapter, read_header
from calibrate.bridge.names import AdapterNames

CONFIG = {"r": 8, "lora_alpha": 8, "target_modules": ["q_proj"], "bias": "none"}
SHAPES = {"lora_A": (8, 4), "lora_B": (6, 8)}


def write(folder: Path, config: Any = CONFIG, shapes: dict[str, tuple[int, ...]] = SHAPES) -> Path:
    """Write an adapter of bfloat16 numbers 0, 1, 2, ... as raw bytes."""
    folder.mkdir(exist_ok=True)
    header, begin = {"__metadata__": {"format": "pt"}}, 0
    for part, shape in shapes.items():
        end = begin + 2 * shape[0] * shape[1]
        entry = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
        header[f"base_model.model.layers.0.q_proj.{part}.weight"] = entry  # type: ignore[assignment]
        begin = end
    text = json.dumps(header).encode()
    data = bytes(number % 251 for number in range(begin))
    (folder / "adapter_model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def test_a_good_adapter(tmp_path: Path) -> None:
    check_adapter(write(tmp_path / "a"), max_lora_rank=8)
    header = read_header(tmp_path / "a" / "adapter_model.safetensors")
    assert [(entry.shape, entry.begin, entry.end) for entry in header.entries] == [
        ((8, 4), 0, 64),
        ((6, 8), 64, 160),
    ]
    assert header.data_bytes == 160


@pytest.mark.parametrize(
    "config,message",
    [
        ({**CONFIG, "r": 16}, "rank 16 is greater than max_lora_rank=8"),
        ({**CONFIG, "r": "8"}, "not a rank"),
        ({**CONFIG, "bias": "all"}, "bias='all'"),
        ({**CONFIG, "use_dora": True}, "use_dora"),
        ({**CONFIG, "modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"r": 8}, "without lora_alpha, target_modules"),
        ([], "not a JSON object"),
    ],
)
def test_configurations_that_vllm_refuses(tmp_path: Path, config: Any, message: str) -> None:
    with pytest.raises(AdapterError, match=message):
        check_adapter(write(tmp_path / "a", config), max_lora_rank=8)


def test_tensors_of_a_larger_rank_than_the_configuration_says(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=r"lora_B.weight: shape \[6, 32\]"):
        check_adapter(write(tmp_path / "a", shapes={"lora_A": (8, 4), "lora_B": (6, 32)}), max_lora_rank=8)


@pytest.mark.parametrize("num_bytes", [0, 4, 20, -1])
def test_files_that_are_cut_off(tmp_path: Path, num_bytes: int) -> None:
    path = write(tmp_path / "a") / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:num_bytes])
    with pytest.raises(AdapterError, match=r"adapter_model\.safetensors: .*cut off"):
        check_adapter(tmp_path / "a", max_lora_rank=8)


def test_every_byte_of_the_header_may_be_wrong(tmp_path: Path) -> None:
    path = write(tmp_path / "a") / "adapter_model.safetensors"
    good = path.read_bytes()
    for place in range(len(good) - 160):
        path.write_bytes(good[:place] + b"\xff" + good[place + 1 :])
        try:
            check_adapter(tmp_path / "a", max_lora_rank=8)
        except AdapterError:
            continue


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="no such folder"):
        check_adapter(tmp_path / "a", 8)
    (write(tmp_path / "a") / "adapter_model.safetensors").unlink()
    with pytest.raises(AdapterError, match=r"without adapter_model\.safetensors"):
        check_adapter(tmp_path / "a", 8)


def lora_request(name: str, number: int, path: Path | str) -> Any:
    return SimpleNamespace(
        lora_name=name, lora_int_id=number, lora_path=str(path), tensorizer_config_dict=None
    )


def test_an_answer_holds_until_the_files_change(tmp_path: Path) -> None:
    check, request = AdapterCheck(max_lora_rank=8), lora_request("a", 1, tmp_path / "a")
    assert "no such folder" in (check.problem(request) or "")
    write(tmp_path / "a")
    assert check.problem(request) is None
    check.failed(request, "it does not fit the model")
    assert check.problem(request) == "it does not fit the model"
    write(tmp_path / "a", {**CONFIG, "r": 16, "comment": "longer"})
    assert "rank 16" in (check.problem(request) or "")


def test_what_only_vllm_can_find_passes() -> None:
    assert AdapterCheck(8).problem(lora_request("a", 1, "somebody/adapter")) is None


def test_names_are_keys_unless_an_id_comes_later_with_the_same() -> None:
    names = AdapterNames()
    first, second = lora_request("a", 1, "x"), lora_request("a", 2, "y")
    assert names.key(first) == names.key(lora_request("a", 1, "x")) == "a"
    assert names.key(second) == "a#2" and names.key(first) == "a"
    assert names.lora_id("a#2") == 2 and names.lora_request("a#2") is second
    assert names.key_of_id(1) == "a" and names.lora_id(names.key_of_id(7)) == 7
