"""The rules of the repository that no linter knows."""

import ast
import re
import subprocess
import sys
import tempfile
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import yaml

from pipelines.transport.broker.settings import SINGLE_NODE, TAKE_OVER

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PACKAGES = ("schemas", "pipelines", "edge_workers", "cloud_workers")
PURE = ("schemas", "pipelines/core", "pipelines/routing")
HASHED = sorted((ROOT / "requirements").glob("*.txt"))
MAX_LINES = 600

# Each written so that it does not match itself.
REGISTRY_HOST = re.compile(
    r"pypi\.org|pythonhosted\.org|repo1?\.maven|maven\.org|npmjs\.|crates\.io|proxy\.golang|debian\.org|docker\.io/"
)
HOME_OF_SOMEBODY = re.compile(r"/(?:home|Users)/[a-z][a-z0-9_-]+/")
SHARED = re.compile(r"\.\./shared")
SKIPS = re.compile(r"pytest\.skip\(|importorskip|mark\.(?:skip|skipif|xfail)\b")
# A clock or a generator reached through a module that may be imported for something else.
IMPURE_CALL = re.compile(
    r"\b(?:datetime\.(?:now|utcnow|today)|date\.today|os\.urandom|uuid[14]|np\.random\.\w+|numpy\.random\.\w+)\("
)


@pytest.fixture(scope="module")
def texts(require) -> dict[str, str]:
    """Every text file of the repository, new ones included, by its path."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    require("a git checkout", listed.returncode == 0, "these rules are checked in a clone")
    found: dict[str, str] = {}
    for name in filter(None, listed.stdout.decode().split("\0")):
        path = ROOT / name
        content = path.read_bytes() if path.is_file() else b"\0"
        if b"\0" not in content:
            found[name] = content.decode(errors="replace")
    return found


def matches(texts: dict[str, str], pattern: re.Pattern[str]) -> list[str]:
    return [
        f"{name}:{number}: {line.strip()[:120]}"
        for name, text in texts.items()
        for number, line in enumerate(text.splitlines(), 1)
        if pattern.search(line)
    ]


def imported(text: str) -> set[str]:
    """Top-level names of all modules that a Python text imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
    return names


def test_no_file_names_a_registry_host(texts) -> None:
    assert matches(texts, REGISTRY_HOST) == []


def test_no_file_names_a_path_of_a_machine(texts) -> None:
    here = {str(ROOT), str(Path.home())}
    if not tempfile.gettempdir().startswith(str(ROOT.parent)):
        here.add(f"{ROOT.parent}/")
    places = re.compile("|".join(re.escape(place) for place in sorted(here - {"/", "//"})) or r"(?!)")
    assert matches(texts, places) == []
    assert matches(texts, HOME_OF_SOMEBODY) == []


def test_only_ci_names_the_shared_folder(texts) -> None:
    own = {".ci/run", "tests/unit/test_project.py"}
    assert matches({name: text for name, text in texts.items() if name not in own}, SHARED) == []


def test_no_module_is_too_long(texts) -> None:
    lengths = {name: len(text.splitlines()) for name, text in texts.items() if name.endswith(".py")}
    assert {name: lines for name, lines in lengths.items() if lines > MAX_LINES} == {}


def test_only_conftest_skips(texts) -> None:
    own = {"tests/conftest.py", "tests/unit/test_project.py"}
    tests = {name: text for name, text in texts.items() if name.startswith("tests/") and name not in own}
    assert matches(tests, SKIPS) == []


def test_what_needs_torch_is_marked_train(texts) -> None:
    """`make test` has no torch, so a module of tests that imports it must carry the marker."""
    tests = {name: text for name, text in texts.items() if name.startswith("tests/") and name.endswith(".py")}
    using = {name for name, text in tests.items() if imported(text) & {"torch", "onnxscript"}}
    assert {name for name in using if "mark.train" not in tests[name]} == set()


def test_what_decides_reads_no_clock_and_draws_nothing(texts) -> None:
    """import-linter forbids whole modules; this finds clocks and generators inside those that are allowed."""
    pure = {name: text for name, text in texts.items() if name.startswith(PURE) and name.endswith(".py")}
    assert matches(pure, IMPURE_CALL) == []


def test_every_import_of_the_packages_is_declared(texts) -> None:
    """A package that only comes along with another one is gone when that one changes."""
    module_of = {"opencv-python-headless": "cv2", "pyyaml": "yaml"}
    declared = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["demo"]]
    declared += [*PROJECT["optional-dependencies"]["train"], *PROJECT["optional-dependencies"]["testing"]]
    names = {re.match(r"[A-Za-z0-9_.-]+", line)[0].lower() for line in declared}
    known = {module_of.get(name, name.replace("-", "_")) for name in names} | sys.stdlib_module_names | {*PACKAGES}
    unknown = {
        name: sorted(imported(text) - known)
        for name, text in texts.items()
        if name.startswith(PACKAGES) and name.endswith(".py") and imported(text) - known
    }
    assert unknown == {}


@pytest.mark.parametrize(
    "point",
    [
        EntryPoint(name, value, group)
        for group, points in [("console", PROJECT["scripts"]), *PROJECT["entry-points"].items()]
        for name, value in points.items()
    ],
    ids=lambda point: f"{point.group}:{point.name}",
)
def test_entry_point_imports(point: EntryPoint) -> None:
    assert point.load() is not None


@pytest.mark.parametrize("path", HASHED, ids=lambda path: path.name)
def test_requirements_are_pinned_with_hashes(path: Path) -> None:
    entries = re.sub(r"\\\n", " ", path.read_text()).splitlines()
    pins = [entry for entry in entries if entry.strip() and not entry.lstrip().startswith("#")]
    assert pins
    assert [pin for pin in pins if not re.match(r"[a-z0-9._-]+(\[[a-z0-9,-]+\])?==\S+ ", pin)] == []
    assert [pin for pin in pins if "--hash=sha256:" not in pin] == []
    assert "://" not in path.read_text()
    assert "index" not in path.read_text()


def test_requirements_agree_and_only_train_has_torch() -> None:
    assert {path.stem for path in HASHED} == {"base", "demo", "dev", "train"}
    versions = {path.stem: dict(re.findall(r"^([a-z0-9._-]+)==(\S+)", path.read_text(), re.M)) for path in HASHED}
    for smaller, larger in [("base", "demo"), ("demo", "dev"), ("base", "train")]:
        assert versions[smaller].items() <= versions[larger].items(), f"{smaller}.txt is not within {larger}.txt"
    assert [name for name in versions if "torch" in versions[name]] == ["train"]


def test_compose_runs_kafka_with_the_settings_of_the_embedded_broker() -> None:
    given = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["x-kafka-settings"]
    wanted = {
        f"KAFKA_{key.upper().replace('.', '_')}": str(value) for key, value in {**TAKE_OVER, **SINGLE_NODE}.items()
    }
    assert {name: given.get(name) for name in wanted} == wanted
