"""`tidegate scale` beside a running pipeline: it says what workers can do, adds one of its own, and takes it back."""

import json
import signal

import pytest

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(300)]

PIPELINE = """\
name: scaled
source: {path: ./images, streams: 4, rate: 25/s, loop: 0}
encode: {codec: raw, resize: [32, 32]}
edge: {model: ./model.onnx, labels: [red, green, blue]}
partitions: 2
"""


def test_workers_join_a_running_pipeline_and_leave_it_again(user, make_model, make_images):
    make_images(user.folder / "images", 40)
    make_model(user.folder / "model.onnx", side=32)
    (user.folder / "pipeline.yaml").write_text(PIPELINE)
    pipeline = user.start("run", "--json")
    user.until_results(pipeline, user.data / "pipelines" / "scaled", "site-1", 4)

    asked = user.run("scale", "advise", "--json", "--for", "2s")
    assert asked.returncode == 0, asked.stderr
    advice = json.loads(asked.stdout)
    assert advice["workers"] == advice["replicas"] == 1
    assert advice["partitions"] == len(advice["table"]) == 2
    assert advice["capacity"]["per_s"] > advice["in_per_s"] > 0
    refused = user.run("scale", "advise", "--replicas", "3")
    assert refused.returncode == 2
    assert "3 edge workers cannot share 2 partitions: 1 would hold none" in refused.stderr

    scaler = user.start("scale", "run", "--min", "2", "--max", "2", "--json")
    assert scaler.stdout is not None
    decisions = (told["decision"] for told in map(json.loads, scaler.stdout) if told["decision"])
    first = next(decisions)
    assert (first["action"], first["before"], first["replicas"], first["fixed"]) == ("out", 1, 2, 1)
    assert next(decision for decision in decisions if decision["workers"] == 2)["replicas"] == 2
    again = user.run("scale", "run", "--max", "2")
    assert again.returncode == 2
    assert "another `tidegate scale run` scales the edge workers of 'scaled'" in again.stderr
    scaler.send_signal(signal.SIGTERM)
    _, err = scaler.communicate(timeout=60)
    assert scaler.returncode == 130, err
    assert "Traceback" not in err

    pipeline.send_signal(signal.SIGINT)
    out, err = pipeline.communicate(timeout=120)
    assert pipeline.returncode == 0, err
    account = json.loads(out)
    assert account["balanced"]
    assert set(account["in_flight"].values()) == {0}
    assert user.left_running() == []
