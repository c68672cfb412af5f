"""What others may import: each name in an `__all__`, parts of classes, parameters; and what entry points are called.

A module without `__all__` is Tidegate's own and may change at any time. `python -m scripts.exports` writes the list.
"""

import ast
import inspect
import tomllib
from collections.abc import Iterator
from enum import Enum
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FILE = ROOT / "tests" / "unit" / "exports.txt"
PACKAGES = ("schemas", "pipelines", "edge_workers", "cloud_workers")

HEAD = """\
# What others may import and name, pinned by tests/unit/test_exports.py. Written by `python -m scripts.exports`.
"""


def text() -> str:
    """What the file is to hold."""
    return HEAD + "".join(f"{line}\n" for line in exports())


def exports() -> list[str]:
    """A line a name."""
    names = public_modules()
    modules = [import_module(name) for name in names]
    lines = [line for module in modules for line in _of_module(module, set(names))]
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["entry-points"]
    return sorted({*lines, *(f"{group} {name}" for group, points in groups.items() for name in points)})


def public_modules() -> list[str]:
    """Modules with an `__all__`, found without importing any."""
    files = [file for package in PACKAGES for file in (ROOT / package).rglob("*.py")]
    return sorted(
        _name(file) for file in files if any(_is_all(node) for node in ast.parse(file.read_text("utf-8")).body)
    )


def _name(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _is_all(node: ast.stmt) -> bool:
    return isinstance(node, ast.Assign) and any(isinstance(to, ast.Name) and to.id == "__all__" for to in node.targets)


def _of_module(module: ModuleType, public: set[str]) -> Iterator[str]:
    for name in module.__all__:
        value = getattr(module, name)
        where = f"{module.__name__}.{name}"
        if getattr(value, "__module__", "") in public - {module.__name__}:
            yield where  # It is told where it stands.
        elif inspect.isclass(value):
            # A protocol is never made.
            made = None if getattr(value, "_is_protocol", False) else vars(value).get("__init__")
            yield where + _parameters(made)
            yield from (f"{where}.{part}" for part in _parts(value))
        else:
            yield where + _parameters(value)


def _parts(kind: type) -> list[str]:
    """What a class has itself: members of an enum, fields and methods of all others."""
    if issubclass(kind, Enum):
        return list(kind.__members__)
    own = vars(kind)
    names = {*own, *inspect.get_annotations(kind), *getattr(kind, "__struct_fields__", ())}
    return [f"{name}{_parameters(own.get(name))}" for name in sorted(names) if name[0] != "_" or name == "__call__"]


def _parameters(part: Any) -> str:
    """Names of a function's parameters: those with `=` may be left out, those behind `*` go by name. Else nothing."""
    function = inspect.unwrap(getattr(part, "__func__", part))
    if not inspect.isfunction(function):
        return ""
    shown: list[str] = []
    for one in inspect.signature(function).parameters.values():
        if one.kind is one.KEYWORD_ONLY and not any(name.startswith("*") for name in shown):
            shown.append("*")
        marks = "*" if one.kind is one.VAR_POSITIONAL else "**" if one.kind is one.VAR_KEYWORD else ""
        shown.append(f"{marks}{one.name}{'' if one.default is one.empty else '='}")
    return f"({', '.join(name for name in shown if name not in ('self', 'cls'))})"


if __name__ == "__main__":
    FILE.write_text(text(), "utf-8")
