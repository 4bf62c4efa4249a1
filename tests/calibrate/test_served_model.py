"""A model folder for `vllm serve`: what is in it, and the command that serves it."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from refusal import Refusal, refused

from calibrate import adapters, served_model
from calibrate.served_model import command, main, write_adapters, write_model

LLAMA = yaml.safe_load(Path("conf/model/llama_3_1_8b.yaml").read_text())


def test_each_token_has_a_word(tmp_path: Path) -> None:
    write_model(tmp_path, LLAMA)
    tokenizer = json.loads((tmp_path / "tokenizer.json").read_text())
    words = tokenizer["model"]["vocab"]
    assert sorted(words.values()) == list(range(LLAMA["vocab_size"]))
    assert words["w17"] == 17
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert words[config["eos_token"]] == LLAMA["vocab_size"] - 1
    assert tokenizer["model"]["unk_token"] == config["unk_token"]
    assert json.loads((tmp_path / "config.json").read_text())["vocab_size"] == LLAMA["vocab_size"]


@pytest.mark.vllm
def test_the_tokenizer_gives_back_the_words_that_it_is_given(tmp_path: Path) -> None:
    from transformers import AutoTokenizer  # noqa: PLC0415

    write_model(tmp_path, LLAMA)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    ids = [5, 100, 1, 0, 10, LLAMA["vocab_size"] - 3]
    text = tokenizer.decode(ids)
    assert text.split() == [f"w{number}" for number in ids]
    assert tokenizer.encode(text) == ids


def test_names_share_a_few_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []

    def write(folder: Path, *rest: Any) -> None:
        folder.mkdir()
        (folder / "adapter_config.json").write_text("{}")
        written.append(folder.name)

    monkeypatch.setattr(served_model, "write_adapter", write)
    for _ in range(2):
        write_adapters(tmp_path, LLAMA, 16, ["a", "b", "c"], 2)
    assert written == ["file0", "file1"]
    assert [(tmp_path / name).resolve().name for name in "abc"] == ["file0", "file1", "file0"]


def test_the_command_names_every_adapter() -> None:
    words = command(Path("/m"), ["a", "b"], {"max_loras": 8})
    assert words[:3] == ["vllm", "serve", "/m"]
    assert "--max-loras=8" in words
    assert words[words.index("--lora-modules") + 1 :] == ["a=/m/adapters/a", "b=/m/adapters/b"]


def test_what_is_written_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(served_model, "write_adapters", lambda *arguments: None)
    monkeypatch.setattr(served_model, "require_torch", lambda: None)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["calibrate.served_model", "out=here", "adapters=3"])
    main()
    assert (tmp_path / "here" / "serve.sh").read_text().count("adapter-0") == 6
    assert "3 adapters of rank 16" in capsys.readouterr().out


def test_more_files_than_adapters_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["adapters=1", "adapter_files=2"]
    message = refused(monkeypatch, capsys, tmp_path, words, main=main, prog="calibrate.served_model")
    assert "adapter_files=2: expected 1 to adapters=1" in message


def test_without_torch_nothing_is_written(refusal: Refusal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapters, "find_spec", lambda name: None)
    message = refusal(["out=here"], main=main, prog="calibrate.served_model")
    assert "torch is not installed: pip install 'lorasim[gpu]'" in message
