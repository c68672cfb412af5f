"""Make or bring up to date a virtual environment from pinned requirement files: `environment.py DIR REQUIREMENTS...`.

Standard library only, since it runs before anything is installed. What was installed is noted in the environment, so
a second call costs some milliseconds. The note keeps the hash of each requirement file (a changed file clears the
environment, so that nothing unpinned stays behind) and, apart from it, the checkout that is installed (an environment
that CI caches serves one checkout after the other).
"""

from __future__ import annotations  # so that a Python that is too old gets as far as being told so

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NOTE = "tidegate.json"


def sha256(path: Path) -> str:
    """Hex digest of a file. Raises FileNotFoundError."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def noted(directory: Path) -> dict[str, str]:
    """What the environment says was installed in it; empty where there is none or where it was left half made."""
    note = directory / NOTE
    return dict(json.loads(note.read_text())) if note.is_file() else {}


def pip(directory: Path, *arguments: str) -> None:
    """Install with the environment's pip. Raises CalledProcessError, after pip has printed its reason."""
    command = [str(directory / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([*command, *arguments], check=True, cwd=ROOT, env=environment)


def prepare(directory: Path, requirements: list[Path]) -> None:
    """Leave `directory` with the pins of `requirements` and of earlier calls, and with this checkout installed."""
    place = {"python": f"{sys.version} {sys.base_prefix}", "directory": str(directory)}
    pins = {path.name: sha256(path) for path in requirements}
    project = {"project": str(ROOT), "pyproject": sha256(ROOT / "pyproject.toml")}
    note, have = directory / NOTE, noted(directory)
    if not have or any(have.get(name, value) != value for name, value in {**place, **pins}.items()):
        print(f"making {directory} with Python {sys.version.split()[0]}", file=sys.stderr)
        venv.create(directory, clear=True, with_pip=True, symlinks=True)
        have = place
    if missing := [path.name for path in requirements if path.name not in have]:
        print(f"installing {', '.join(missing)} into {directory}", file=sys.stderr)
        pip(directory, "--require-hashes", *(f"--requirement={path.resolve()}" for path in requirements))
        have = {**have, **pins}
        note.write_text(json.dumps(have))
    if any(have.get(name) != value for name, value in project.items()):
        pip(directory, "--no-deps", "--no-build-isolation", "--editable", ".")
        note.write_text(json.dumps({**have, **project}))


def main() -> None:
    """Prepare the environment named on the command line; one line and a failing exit code where it cannot be."""
    if sys.version_info < (3, 11):
        sys.exit(f"Tidegate needs Python 3.11 or newer, this is {sys.version.split()[0]}: make PYTHON=python3.12 ...")
    if importlib.util.find_spec("ensurepip") is None:
        sys.exit("this Python cannot make environments: install its venv package (python3-venv on Debian and Ubuntu)")
    directory, *requirements = (Path(argument) for argument in sys.argv[1:])
    try:
        prepare(directory.resolve(), requirements)
    except subprocess.CalledProcessError as error:
        sys.exit(f"{directory} is not ready: pip ended with {error.returncode} and gave its reason above")


if __name__ == "__main__":
    main()
