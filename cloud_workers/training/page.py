"""A model card as a page to read."""

from pipelines.models.release import Card


def card_page(card: Card) -> str:
    """Markdown of a card: everything a person asks of a model before using it."""
    given = card.input
    lines = [
        f"# {card.name}",
        "",
        f"Classifies {given.height}x{given.width} images into {', '.join(card.labels)}.",
        "",
        f"- **Input**: {given.dtype} {given.layout}, any number of images; normalisation is part of the graph. "
        "Output: logits.",
        f"- **Confidence**: softmax of logits / {card.temperature}; under {card.threshold} an answer is worth "
        "escalating. Both were set on held-out images only.",
        f"- **Recipe**: {card.recipe}.",
        *(f"- **Data**: {data.name}, {data.licence}; {data.use}." for data in card.data),
        f"- **File**: {card.name}.onnx, {card.size_bytes:,} bytes, version {card.version},",
        f"  SHA-256 `{card.sha256}`.",
        "",
        "| judged on | images | accuracy |",
        "| --- | --- | --- |",
        *(f"| {seen.on} | {seen.items:,} | {seen.accuracy:.4f} |" for seen in card.accuracy),
        "",
        "Meant for the demo, tests and benchmarks of Tidegate: centred grey digits, white on black. It knows no",
        "other input and will answer with a digit whatever it is shown.",
        "",
    ]
    return "\n".join(lines)
