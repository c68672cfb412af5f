"""What others may import stays: the list in `exports.txt`, and that the examples need nothing else."""

import ast
import difflib
import inspect
from importlib import import_module
from pathlib import Path

import pytest

from scripts import exports

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
HOW = """
Names that others use have changed (- is gone, + is new). If that is meant, run

    .venv/bin/python -m scripts.exports

and say in CHANGELOG what is gone, and what takes its place."""


def test_what_others_may_import_is_what_it_was():
    pinned, today = exports.FILE.read_text("utf-8").splitlines(), exports.text().splitlines()
    changes = [
        line for line in difflib.unified_diff(pinned, today, lineterm="", n=0) if line[:2] not in ("--", "++", "@@")
    ]
    assert not changes, "\n".join(["", *changes, HOW])


@pytest.mark.parametrize("name", exports.public_modules())
def test_every_name_is_there_and_explained(name):
    module = import_module(name)
    assert len({*module.__all__}) == len(module.__all__)
    for one in module.__all__:
        value = getattr(module, one)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert inspect.getdoc(value), one


@pytest.mark.parametrize("name", [name for name in exports.public_modules() if name.startswith("schemas.")])
def test_every_record_is_public(name):
    module = import_module(name)
    own = {
        one
        for one, value in vars(module).items()
        if getattr(value, "__module__", "") == name and (inspect.isclass(value) or inspect.isfunction(value))
    }
    assert {one for one in own if not one.startswith("_")} <= {*module.__all__}


def test_every_module_of_schemas_is_public():
    files = {f"schemas.{file.stem}" for file in (ROOT / "schemas").glob("*.py")} - {"schemas.__init__"}
    assert files <= {*exports.public_modules()}


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.name)
def test_the_examples_need_nothing_else(file):
    public = {*exports.exports()}
    names = {line.partition("(")[0] for line in public}
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in exports.PACKAGES:
            assert {f"{node.module}.{alias.name}" for alias in node.names} <= names


def test_parts_and_parameters_are_told():
    lines = {*exports.exports()}
    assert {
        "pipelines.routing.base.Policy.admit(items, signals)",
        "pipelines.routing.base.decide(n, *cases)",
        "edge_workers.sources.base.open_source(kind, path, *, streams=, loop=, **options)",
        "edge_workers.sources.base.Split(what, length, streams, loop)",
        "edge_workers.sources.base.SourceFactory.__call__(path, *, streams, loop, **options)",
        "pipelines.routing.base.Policy",
        "pipelines.codecs.base.find_codec(name, **settings)",
        "schemas.ledger.Outcome.EXPIRED",
        "schemas.results.Result.edge_label",
        "pipelines.testing.EdgeAndCloud.cut()",
        "tidegate.policies threshold",
    } <= lines
    assert not [line for line in lines if "._" in line and ".__call__(" not in line]
