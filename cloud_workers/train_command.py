"""`tidegate train`: train one of the shipped models anew, in one process."""

from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from pipelines.errors import ConfigError
from pipelines.models.release import Card, Release

app = typer.Typer(help="Train a digits model on MNIST and write it as a release.")


@app.command()
def train(
    data: Annotated[Path, typer.Option(help="Folder with the four MNIST archives (idx.gz).")],
    out: Annotated[Path, typer.Option(help="Folder for NAME.onnx, its card NAME.json and NAME.md.")],
    model: Annotated[str, typer.Option(help="digits-small or digits-large.")] = "digits-small",
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Passes over the images; the recipe's if not given.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of weights, order and augmentation.")] = 0,
    escalate: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Share of held-out images that lies under the threshold.")
    ] = 0.075,
    as_json: Annotated[bool, typer.Option("--json", help="Print the card as JSON.")] = False,
) -> None:
    """Train, calibrate on held-out images, then judge on images that were not trained on."""
    release = _build(data, model, out, epochs, seed, escalate)
    if as_json:
        typer.echo(msgspec.json.encode(release.card).decode())
        return
    console = Console()
    console.print(f"[bold]{release.path}[/] and its card, {release.card.size_bytes:,} bytes")
    console.print(_table(release.card))


def _build(data: Path, model: str, out: Path, epochs: int | None, seed: int, escalate: float) -> Release:
    try:
        from cloud_workers.training.build import build
        from cloud_workers.training.networks import RECIPES
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "onnx"):
            raise
        raise ConfigError(
            f"training needs {error.name}, which is not installed", remedy="pip install 'tidegate[train]'"
        ) from None
    from cloud_workers.training.data import load_digits

    if model not in RECIPES:
        raise ConfigError(f"there is no recipe for '{model}'", remedy=f"--model is one of {', '.join(RECIPES)}")
    passes = epochs or RECIPES[model].epochs
    digits = load_digits(data)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.4f}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
    with bar:
        task = bar.add_task(f"{model}, {passes} epochs", total=passes * len(digits.train.images), loss=float("nan"))

        def report(items: int, loss: float) -> None:
            bar.update(task, advance=items, loss=loss)

        return build(model, digits, out, passes, seed, escalate, report)


def _table(card: Card) -> Table:
    table = Table(
        "judged on", "images", "accuracy", title=f"temperature {card.temperature}, threshold {card.threshold}"
    )
    for seen in card.accuracy:
        table.add_row(seen.on, f"{seen.items:,}", f"{seen.accuracy:.4f}")
    return table
