"""The example of `pipelines.testing`, run as its reader would."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.containers, pytest.mark.timeout(300)]

ROOT = Path(__file__).resolve().parents[2]


def test_the_example_passes(images):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "examples/own_containers.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout
