"""The `tidegate` command, and the one place that notices a foreign package under one of our names.

Tidegate's packages have plain names (`schemas`, `pipelines`, `edge_workers`, `cloud_workers`). A folder of the same
name that stands earlier on the import path would be imported instead, so this module (whose own name is safe) looks
where each name leads before anything of ours is imported.
"""

import importlib.util
import sys
from pathlib import Path

PACKAGES = ("schemas", "pipelines", "edge_workers", "cloud_workers")


def shadowed(home: Path) -> str | None:
    """One sentence naming the first package of ours that something else hides, or None. `home` holds this file."""
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        places = [Path(place) for place in (spec.submodule_search_locations or [])] if spec else []
        if home / name in places:
            continue
        found = places[0] if places else (Path(spec.origin) if spec and spec.origin else None)
        if found is None:
            return f"the package '{name}' of Tidegate is missing from {home}: install tidegate again"
        return (
            f"another package named '{name}' at {found} hides Tidegate's: rename or uninstall it, "
            "or run tidegate in an environment of its own"
        )
    return None


def main() -> None:
    """Run the command line; exit 2 with one sentence where a package of ours is hidden."""
    problem = shadowed(Path(__file__).resolve().parent)
    if problem:
        sys.stderr.write(f"error: {problem}\n")
        raise SystemExit(2)
    from pipelines.cli.main import run

    run()


if __name__ == "__main__":
    main()
