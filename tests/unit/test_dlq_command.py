"""What `tidegate dlq` prints and refuses, without a Kafka."""

import io
import os
import pty
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from pipelines.cli.dlq import _carry_out, _write, app
from pipelines.cli.letters import age, moment, summary, table
from pipelines.core.dead_letters import Letter
from pipelines.errors import ConfigError, Fenced, TakenOver, TransportError
from pipelines.transport.base import Aborted
from schemas.topics import Tier


def test_a_terminal_is_given_no_bytes():
    ours, theirs = pty.openpty()
    try:
        with pytest.raises(ConfigError, match="is a terminal: name a file"):
            _write(Path(os.ttyname(theirs)), b"\x1b[2J")
    finally:
        os.close(ours)
        os.close(theirs)


def failing(error, *counts):
    yield from counts
    raise error


def test_a_failure_says_what_was_done_and_that_it_can_be_run_again():
    with pytest.raises(TransportError, match=r"gone \(12 of 20 were retried\): run it again: none is done twice"):
        _carry_out(failing(Aborted("gone", remedy="go back"), 7, 5), 20, "retried")
    with pytest.raises(
        TakenOver, match="another `tidegate dlq` has taken over; 0 of 20 were dropped here: run it again"
    ):
        _carry_out(failing(Fenced("'dlq.site' was fenced")), 20, "dropped")


def test_a_file_that_is_not_there_is_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for command in (["list"], ["show", "0@0"], ["retry", "--all"], ["drop", "--all"]):
        result = CliRunner().invoke(app, command)
        assert isinstance(result.exception, ConfigError)
        assert str(result.exception).startswith("pipeline.yaml cannot be read")


@pytest.mark.parametrize(
    ("age_us", "text"),
    [(-5, "0 s"), (59_000_000, "59 s"), (60_000_000, "1.0 min"), (9_000_000_000, "2.5 h"), (180_000_000_000, "2.1 d")],
)
def test_ages_are_said_in_their_largest_unit(age_us, text):
    assert age(age_us) == text


def test_times_are_said_in_utc_and_those_beyond_any_calendar_all_the_same():
    assert moment(1_700_000_000_123_456) == "2023-11-14 22:13:20.123 UTC"
    assert moment(1 << 63) == "9223372036854775808 us"


def test_what_is_meant_is_summed_up_by_reason_and_cannot_steer_a_terminal():
    letters = [Letter(Tier.EDGE, 0, n, 0, reason, "", "", 0) for n, reason in enumerate(["b", "", "b", "\x1b[2J"])]
    assert summary(letters) == "4 dead letters (1 (no reason), 1 \\x1b[2J, 2 b)"


@pytest.mark.parametrize(
    ("width", "left_out"), [(100, ""), (80, "epoch, content type"), (50, "epoch, seq, content type, bytes, age")]
)
def test_the_table_leaves_columns_out_where_the_terminal_is_narrow(width, left_out):
    letter = Letter(Tier.EDGE, 3, 17, 0, "undecodable", "", "image/jpeg", 1_234, "cam-00", 1_795_462_365_208, 12, 1)
    console = Console(file=io.StringIO(), width=width)
    console.print(table([letter], 9_000_000_000, states=True))
    text = console.file.getvalue()
    assert all(whole in text for whole in ("edge", "3@17", "cam-00", "undecodable", "waiting"))
    assert ("1795462365208" in text) == (not left_out)
    assert " ".join(text.split()).endswith(f"too narrow for {left_out}: --json has all" if left_out else "┘")
