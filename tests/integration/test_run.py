"""`tidegate run` in the hands of its user: interrupted, run again, run twice at once."""

import json
import signal
from collections import defaultdict

import pytest

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(300)]

FRAMES, STREAMS = 240, 2
PIPELINE = """\
name: mine
source: {{path: ./images, streams: {streams}, rate: {rate}}}
edge: {{model: ./model.onnx, labels: [red, green, blue]}}
"""


def seqs_and_labels(text):
    """What a file of results says, by stream: labels by seq. No seq is there twice."""
    found = defaultdict(dict)
    for line in text.splitlines():
        result = json.loads(line)
        assert result["seq"] not in found[result["stream"]]
        found[result["stream"]][result["seq"]] = result["label"]
    return found


def test_an_interrupted_run_drains_and_the_next_goes_on_where_it_ended(user, make_model, make_images):
    labels = make_images(user.folder / "images", FRAMES)
    make_model(user.folder / "model.onnx")
    file = user.folder / "pipeline.yaml"
    file.write_text(PIPELINE.format(streams=STREAMS, rate="1/s"))
    first = user.start("run", "--json", "--results", "first.jsonl")
    user.until_results(first, user.data / "pipelines" / "mine", "site-1", 4)

    second = user.run("run")
    assert second.returncode == 2
    assert second.stderr == (
        "error: pipeline 'mine' runs already: stop the other run, or give this one another `name`\n"
    )
    seen = user.run("audit", "--json")
    assert seen.returncode == 0, seen.stderr
    assert json.loads(seen.stdout)["captured"] > 0

    first.send_signal(signal.SIGINT)
    out, err = first.communicate(timeout=120)
    assert first.returncode == 0, err
    assert "Traceback" not in err
    account = json.loads(out)
    assert account["balanced"]
    assert 0 < account["captured"] < FRAMES
    assert set(account["in_flight"].values()) == {0}
    assert user.left_running() == []
    assert not (user.data / "pipelines" / "mine" / "running.json").exists()

    file.write_text(PIPELINE.format(streams=STREAMS, rate="as fast as possible"))
    rest = user.run("run", "--json", "--results", "rest.jsonl")
    assert rest.returncode == 0, rest.stderr
    assert json.loads(rest.stdout)["captured"] == FRAMES
    assert json.loads(rest.stdout)["outcomes"]["answered_edge"] == FRAMES
    before, after = (seqs_and_labels((user.folder / name).read_text()) for name in ("first.jsonl", "rest.jsonl"))
    assert sum(map(len, before.values())) == account["captured"]
    for number, stream in enumerate(["cam-00", "cam-01"]):
        assert not before[stream].keys() & after[stream].keys()
        answers = before[stream] | after[stream]
        assert sorted(answers) == list(range(FRAMES // STREAMS))
        # Files go to the cameras in turn; grey ones have no strongest colour.
        for seq, label in answers.items():
            assert labels[seq * STREAMS + number] in ("", label)
    assert user.left_running() == []
