"""`tidegate init`: a commented pipeline file to begin with."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from pipelines.errors import ConfigError
from schemas.topics import SITE_NAME

app = typer.Typer(add_completion=False)

TEMPLATE = """\
# A Tidegate pipeline. `tidegate check {file}` validates it, `tidegate run {file}` runs it.
name: {name}
source:                       # a folder of images: JPEG, PNG, BMP, PGM, PPM
  path: {images}
  rate: 10/s                  # of each stream; or `as recorded`, or `as fast as possible`
edge:                         # an ONNX file that takes images and gives one score a class
  model: {model}
  # labels: ./labels.txt      # one class name a line
  # input: {{scale: 0.003921569, mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225]}}
# encode: {{codec: jpeg, quality: 80, resize: [224, 224]}}

# To ask a larger model where the small one is not sure:
# cloud: {{model: ./large.onnx}}
# routing: {{policy: threshold, options: {{threshold: 0.8}}}}
# deadline: 10s               # the edge's own answer stands after that

# Clusters of your own; without them `tidegate run` runs an embedded Kafka a tier.
# kafka:
#   edge:  {{bootstrap: "edge-kafka:9092"}}
#   cloud: {{bootstrap: "cloud-kafka:9092", librdkafka: {{security.protocol: ssl}}}}
"""


@app.command()
def init(
    file: Annotated[Path, typer.Argument(help="The file to write.")] = Path("pipeline.yaml"),
    images: Annotated[str, typer.Option(help="Folder of images.")] = "./images",
    model: Annotated[str, typer.Option(help="ONNX file.")] = "./model.onnx",
    name: Annotated[str, typer.Option(help="Name of the pipeline.")] = "my-cameras",
) -> None:
    """Write a commented pipeline file for a folder of images and an ONNX file."""
    if not SITE_NAME.fullmatch(name):
        raise ConfigError(f"--name: '{name}' is no name", remedy="take small letters, digits and hyphens, 63 at most")
    # A JSON string is one of YAML too, whatever stands in it.
    places = {"images": json.dumps(images), "model": json.dumps(model)}
    try:
        with file.open("x", encoding="utf-8") as out:
            out.write(TEMPLATE.format(file=file, name=name, **places))
    except FileExistsError as error:
        raise ConfigError(f"{file} is there already", remedy="name another file, or remove it") from error
    except OSError as error:
        raise ConfigError(f"{file} cannot be written ({error.strerror})", remedy="name another place") from error
    Console().print(
        f"wrote {file}: set `source.path` and `edge.model`, then `tidegate check {file}`",
        soft_wrap=True,
        highlight=False,
    )
