"""What `tidegate audit` prints."""

import io

import msgspec
import pytest
from rich.console import Console
from typer.testing import CliRunner

from pipelines.cli.audit import FINDINGS_SHOWN, app, show
from pipelines.core.ledger import Evidence, Finding, account
from pipelines.errors import ConfigError
from schemas.ledger import Mark, Outcome


def verdict_of(marks, end, **given):
    positions = {("cam-1", 2): end}
    stages = [{"site.items": []}]
    return account(Evidence(before=positions, stages=stages, marks=marks, after=positions, site="site-1", **given))


def shown(verdict):
    console = Console(file=io.StringIO(), width=100)
    show(verdict, console)
    return console.file.getvalue()


def test_a_balanced_account_shows_every_outcome_and_says_so():
    text = shown(verdict_of([Mark("cam-1", 2, 0, 1233, Outcome.SHED, "age")], 1234, foreign={"site.items": 3}))

    for word in ("site-1", "captured", "1,234", "shed", "age", "in flight: site.items", *Outcome):
        assert word in text
    assert "foreign records: site.items" in text
    assert "not balanced" not in text
    assert "balanced: every captured item" in text


def test_findings_are_named_and_those_past_the_limit_counted():
    marks = [Mark("cam-1", 2, seq, seq, Outcome.EXPIRED) for seq in range(0, 2 * FINDINGS_SHOWN + 4, 2)]
    verdict = verdict_of(marks, 2 * FINDINGS_SHOWN + 4)
    text = shown(verdict)

    assert len(verdict.lost) == FINDINGS_SHOWN + 2
    assert verdict.lost[0] == Finding("cam-1", 2, 1, 1)
    assert "and 2 more" in text
    assert "not balanced" in text


def test_marks_that_retention_removed_are_said_to_look_lost():
    whole = verdict_of([], 5, ledger_offsets_removed=7)

    assert "retention has removed marks" in shown(whole)
    assert "retention has removed marks" not in shown(msgspec.structs.replace(whole, ledger_offsets_removed=0))


def test_a_drain_that_is_no_duration_is_one_line():
    result = CliRunner().invoke(app, ["--drain", "soon"])

    assert isinstance(result.exception, ConfigError)
    assert str(result.exception).startswith("--drain: 'soon' is not a duration")


def test_a_missing_file_is_one_line(tmp_path):
    result = CliRunner().invoke(app, [str(tmp_path / "pipeline.yaml")])

    assert isinstance(result.exception, ConfigError)
    assert "\n" not in str(result.exception)


@pytest.mark.parametrize(("first", "last", "word"), [(3, 3, " 3 "), (3, 5, " 3-5 ")])
def test_a_range_of_one_is_shown_as_one(first, last, word):
    marks = [Mark("cam-1", 2, 0, 8, Outcome.GATED), Mark("cam-1", 2, first, last, Outcome.EXPIRED)]

    assert word in shown(verdict_of(marks, 9))
