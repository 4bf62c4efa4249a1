"""An installed wheel works from any folder, also from one with folders named as our packages."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("sim", "policies", "calibrate", "reports", "conf")
QUICK = ["profile=constant", "workload.duration_s=1", "workload.num_adapters=50", "hydra.run.dir=out"]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with nothing but the wheel, unpacked as pip does; built from a copy of the tree."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("installed")
    for name in ("pyproject.toml", "README.md", "LICENSE", *PACKAGES):
        subprocess.run(["cp", "-r", ROOT / name, source / name], check=True)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    subprocess.run([*pip, "--no-build-isolation", "--target", target, source], check=True)
    return target


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with a ``conf`` and a ``policies`` of the user's own, packages and not."""
    for name in ("conf", "policies"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise ImportError('the wrong package')\n")
    (tmp_path / "conf" / "config.yaml").write_text("nonsense: true\n")
    return tmp_path


def run(installed: Path, folder: Path, *words: str) -> str:
    """Run with the packages in ``installed`` and return what is printed."""
    # Comes before the editable installation of this checkout.
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_wheel_holds_every_configuration_file(installed: Path) -> None:
    def files(root: Path) -> set[Path]:
        return {path.relative_to(root) for path in (root / "conf").rglob("*.yaml")}

    assert files(installed) == files(ROOT)


def test_console_command_beside_folders_of_the_same_names(installed: Path, folder: Path) -> None:
    run(installed, folder, sys.executable, str(installed / "bin" / "lorasim"), *QUICK)
    assert (folder / "out" / "summary.json").exists()


def test_module_beside_folders_of_the_same_names(installed: Path, folder: Path) -> None:
    run(installed, folder, sys.executable, "-m", "sim", *QUICK)
    assert (folder / "out" / "summary.json").exists()


def test_sim_is_imported_from_the_wheel(installed: Path, folder: Path) -> None:
    where = run(installed, folder, sys.executable, "-c", "import sim; print(sim.__file__)")
    assert Path(where.strip()).is_relative_to(installed)
