"""A foreign package under one of our names is answered by one sentence, before anything of it is used."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import tidegate

COMMAND = str(Path(sys.executable).with_name("tidegate"))


def run_version(first_on_path: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(first_on_path)}
    return subprocess.run(
        [COMMAND, "--version"],
        env=environment,
        cwd=first_on_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def assert_one_sentence(run: subprocess.CompletedProcess[str], name: str, place: Path) -> None:
    assert run.returncode == 2, run.stderr
    assert run.stdout == ""
    (line,) = run.stderr.splitlines()
    assert f"'{name}'" in line
    assert str(place) in line
    assert "rename or uninstall it" in line


@pytest.mark.parametrize("name", tidegate.PACKAGES)
def test_a_foreign_package_is_named(tmp_path: Path, name: str) -> None:
    package = tmp_path / name
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('a foreign package was imported')\n")
    assert_one_sentence(run_version(tmp_path), name, package)


def test_a_foreign_module_is_named(tmp_path: Path) -> None:
    module = tmp_path / "schemas.py"
    module.write_text("raise RuntimeError('a foreign module was imported')\n")
    assert_one_sentence(run_version(tmp_path), "schemas", module)


def test_a_mere_folder_of_that_name_hides_nothing(tmp_path: Path) -> None:
    (tmp_path / "schemas").mkdir()
    run = run_version(tmp_path)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("tidegate ")


def test_a_missing_package_says_to_install_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tidegate, "PACKAGES", ("a_package_that_is_nowhere",))
    assert tidegate.shadowed(tmp_path) == (
        f"the package 'a_package_that_is_nowhere' of Tidegate is missing from {tmp_path}: install tidegate again"
    )
