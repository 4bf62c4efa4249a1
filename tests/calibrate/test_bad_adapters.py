"""Adapters are spoilt each in its way, and the answers of a server to them and to others are kept."""

import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from calibrate.bad_adapters import main
from tests.refusal import refused


@pytest.fixture
def adapters(tmp_path: Path) -> Path:
    folder = tmp_path / "adapters"
    (folder / "file0").mkdir(parents=True)
    (folder / "file0" / "adapter_config.json").write_text('{"r": 16}')
    (folder / "file0" / "adapter_model.safetensors").write_bytes(b"0" * 1_500_000)
    for number in range(6):
        (folder / f"adapter-{number:04d}").symlink_to("file0")
    return folder


@pytest.fixture
def endpoint(adapters: Path) -> Iterator[str]:
    """Serves what is whole, and fails what is not, as vLLM's front end does."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            folder = adapters / body["model"]
            whole = (
                folder.exists()
                and json.loads((folder / "adapter_config.json").read_text())["r"] == 16
                and (folder / "adapter_model.safetensors").stat().st_size == 1_500_000
            )
            self.send_response(200 if whole else 500)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_the_spoilt_fail_and_the_others_do_not(
    adapters: Path, endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [f"endpoint={endpoint}", "adapters_dir=adapters", "good=2", "out=out.json"]
    monkeypatch.setattr(sys, "argv", ["calibrate.bad_adapters", *words])
    main()
    result = json.loads((tmp_path / "out.json").read_text())
    assert [(row["adapter"], row["bad"], row["status"]) for row in result["requests"]] == [
        *((f"adapter-{number:04d}", None, 200) for number in range(2)),
        *2
        * [
            ("adapter-0003", "missing", 500),
            ("adapter-0004", "truncated", 500),
            ("adapter-0005", "rank 64", 500),
        ],
    ]
    assert result["after"]["status"] == 200
    assert (adapters / "file0" / "adapter_model.safetensors").stat().st_size == 1_500_000


def test_too_few_adapters_are_refused(
    adapters: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["adapters_dir=adapters", "good=4"]
    message = refused(monkeypatch, capsys, adapters.parent, words, main=main, prog="calibrate.bad_adapters")
    assert "adapters_dir=adapters: 6 adapters; expected 8 or more" in message
