"""Write the JSON Schemas of all records without headers to `schemas/published/`. `make schemas` runs it."""

import json
from pathlib import Path

import msgspec

from schemas.wire import PUBLISHED

FOLDER = Path(__file__).resolve().parent.parent / "schemas" / "published"


def documents() -> dict[str, str]:
    """File name and text of each schema."""
    return {
        f"{name}.json": json.dumps(msgspec.json.schema(kind), indent=2, sort_keys=True) + "\n"
        for name, kind in PUBLISHED.items()
    }


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, text in documents().items():
        (FOLDER / name).write_text(text, "utf-8")
