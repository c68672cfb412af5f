"""Write JSON Schemas, AsyncAPI and golden records to `schemas/published/`. `make schemas` runs it.

What is published is a promise: a change that breaks it is refused, and nothing is written (`scripts/compatibility.py`).
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path

from scripts.asyncapi import document
from scripts.compatibility import ASYNCAPI, Break, breaks
from scripts.golden import files, read_all
from scripts.golden_records import goldens
from scripts.record_schemas import record_schemas

FOLDER = Path(__file__).resolve().parent.parent / "schemas" / "published"
GOLDEN = "golden"

REMEDY = """take it back, or break it on purpose: raise VERSION in schemas/headers.py (for tg.json), schemas/wire.py \
(for records with a field `version`) or schemas/flows.py (for all else), and say so in CHANGELOG"""


def documents() -> dict[str, str]:
    """File name and text of each document, the golden records apart."""
    every = {**record_schemas(), ASYNCAPI: document()}
    return {name: json.dumps(one, indent=2, sort_keys=True) + "\n" for name, one in every.items()}


def published(folder: Path = FOLDER) -> dict[str, str]:
    """File name and text of each document that is there."""
    return {file.name: file.read_text("utf-8") for file in folder.glob("*.json")}


def broken(old: Mapping[str, str], new: Mapping[str, str]) -> list[Break]:
    """What the documents `new` break of `old`."""
    return breaks(*({name: json.loads(text) for name, text in side.items()} for side in (old, new)))


def golden_files(folder: Path = FOLDER) -> dict[str, str]:
    """File name and text of each golden record that today's code writes."""
    return files(goldens(), read_all(folder / GOLDEN))


def publish(folder: Path = FOLDER) -> list[Break]:
    """Write all of it; or nothing, where something would break: then what."""
    new = documents()
    found = broken(published(folder), new)
    if not found:
        (folder / GOLDEN).mkdir(parents=True, exist_ok=True)
        for name, text in {**new, **{f"{GOLDEN}/{name}": text for name, text in golden_files(folder).items()}}.items():
            (folder / name).write_text(text, "utf-8")
    return found


if __name__ == "__main__":
    if refused := publish():
        print("error: this breaks what is published, and nothing was written:", file=sys.stderr)
        print(*(f"  {one}" for one in refused), f"remedy: {REMEDY}", sep="\n", file=sys.stderr)
        sys.exit(2)
