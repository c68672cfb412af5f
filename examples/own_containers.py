"""A test of your own pipeline in containers: the link to the cloud is cut while items flow, and none may be lost.

Needs a Docker engine, the images of both tiers (`docker compose build`), and `pip install 'tidegate[demo,testing]'`.
Run it with `python -m pytest examples/own_containers.py`.
"""

from pathlib import Path

import cv2
import yaml

from pipelines.cli.digits import load_digits
from pipelines.testing import EdgeAndCloud

PIPELINE = {
    "name": "own",
    "source": {"path": "images", "streams": 2, "rate": "20/s"},
    "encode": {"codec": "raw", "resize": [28, 28], "grey": True},
    "edge": {"model": "builtin:digits-small"},
    "cloud": {"model": "builtin:digits-large"},
    # A threshold that no answer reaches: every item is sent to the cloud.
    "routing": {"policy": "threshold", "options": {"threshold": 1.0}},
    "deadline": "2s",
    "partitions": 2,
}
ITEMS = 60


def test_a_cut_link_loses_nothing(tmp_path: Path) -> None:
    """Every item is asked of the cloud, which is away for a while: each has one outcome all the same."""
    tmp_path.chmod(0o755)  # Workers run as a user of their own.
    (tmp_path / "images").mkdir()
    for number, image in enumerate(load_digits()[0][:ITEMS]):
        cv2.imwrite(str(tmp_path / "images" / f"{number:02}.png"), image)
    file = tmp_path / "pipeline.yaml"
    file.write_text(yaml.safe_dump(PIPELINE))

    with EdgeAndCloud(file) as running:
        running.start_all()
        running.workers("produce")[0].wait()  # Until the source has ended.
        running.cut()
        assert running.audit().balanced
        running.heal()
        account = running.audit()

    assert account.balanced
    assert account.captured == ITEMS == sum(account.outcomes.values())
