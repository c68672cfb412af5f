"""The README, followed to the letter: its files are written, its commands are run, what they print is what it says."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(300)]

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
BLOCK = re.compile(r"<!-- tested: (\S+) -->\n```\w+\n(.*?)```", re.DOTALL)
IMAGES = 24
COMMAND_S = 150


def blocks(kind: str) -> list[str]:
    """Blocks that are marked as tested, in order."""
    return [text for marked, text in BLOCK.findall(README) if marked == kind]


def follow(user, session: str) -> None:
    """Run each `$ command` of a console session; its output must hold the lines below it, `...` being anything."""
    for command, printed in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", session, re.MULTILINE):
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=user.folder,
            env=user.environment,
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        expected = r"\n(?:.*\n)*?".join(re.escape(line) for line in printed.splitlines() if line != "...")
        assert re.search(expected.replace(re.escape("..."), ".*"), done.stdout), done.stdout


def test_your_own_images_and_model(user, make_model, make_images):
    (ten_lines,) = blocks("pipeline.yaml")
    assert len(ten_lines.splitlines()) == 10
    labels = make_images(user.folder / "images", IMAGES)
    make_model(user.folder / "model.onnx", side=224)
    make_model(user.folder / "large.onnx", side=None)
    first, second = blocks("console")

    # What `init` writes is as good as the file below it.
    assert user.run("init").returncode == 0
    follow(user, "$ tidegate check pipeline.yaml\n")
    (user.folder / "pipeline.yaml").write_text(ten_lines)
    follow(user, first)

    results = [json.loads(line) for line in (user.folder / "results.jsonl").read_text().splitlines()]
    (shown,) = blocks("result")
    assert json.loads(shown).keys() == min((result.keys() for result in results), key=len)
    answers = {result["seq"]: result for result in results}
    assert sorted(answers) == list(range(IMAGES))
    names = ("red", "green", "blue")
    for seq, label in enumerate(labels):
        answer = answers[seq]
        if label:
            assert (answer["outcome"], names[int(answer["label"])]) == ("answered_edge", label)
        else:
            # A grey image has no strongest colour: the edge is not sure of it and asks the cloud, while it is there.
            assert answer["outcome"] in ("answered_cloud", "answered_edge_fallback") or answer["reason"] == "cloud_away"
    by_cloud = [answer for answer in answers.values() if answer["outcome"] == "answered_cloud"]
    assert by_cloud
    assert all(answer["model"].startswith("large@") for answer in by_cloud)

    (routing,) = blocks("routing")
    whole = yaml.safe_load(ten_lines) | yaml.safe_load(routing)
    (user.folder / "pipeline.yaml").write_text(yaml.safe_dump(whole))
    shutil.copy(ROOT / "examples" / "own_policy.py", user.folder)
    follow(user, second)
    assert user.left_running() == []


def test_every_file_that_the_readme_links_to_is_there():
    links = set(re.findall(r"\]\(([^)#:]+)\)", README))
    assert len(links) > 8
    assert [link for link in sorted(links) if not (ROOT / link).exists()] == []
