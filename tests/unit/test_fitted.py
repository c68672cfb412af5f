"""Tables that fit: whatever the terminal's width, no cell is cut, and what is left out is named."""

import io

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from rich.console import Console

from pipelines.cli.fitted import BORDERS, NARROWEST, Column, Fitted

WORDS = st.text("abcdef.0123456789", min_size=1, max_size=20)
COLUMNS = st.lists(
    st.builds(
        Column, st.sampled_from(["kind", "drained in", "out/s"]), st.integers(0, 4), st.booleans(), st.booleans()
    ),
    min_size=1,
    max_size=8,
)


def lines_of(table, width):
    console = Console(file=io.StringIO(), width=width)
    console.print(table)
    return console.file.getvalue().splitlines()


def cells_of(lines):
    """The cells of each line below the head. A row whose cells break has several lines."""
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in lines if line.startswith("│")]


@given(columns=COLUMNS, width=st.integers(20, 200), data=st.data())
def test_no_line_is_wider_and_no_cell_that_is_shown_is_cut(columns, width, data):
    assume(width > sum(NARROWEST + BORDERS for one in columns if not one.rank))
    row = [" ".join(data.draw(st.lists(WORDS, min_size=1, max_size=3 if one.wraps else 1))) for one in columns]
    table = Fitted("a title", columns)
    table.add(*row)
    lines = lines_of(table, width)
    assert all(len(line) <= width for line in lines)
    assert "…" not in "".join(lines)
    shown = ["".join(parts) for parts in zip(*cells_of(lines), strict=True)]
    rest = iter(cell.replace(" ", "") for cell in row)
    assert all(cell.replace(" ", "") in rest for cell in shown), "whole, and in their order"
    missing = len(columns) - len(shown)
    assert ("--json has all" in " ".join(" ".join(lines).split())) == bool(missing)
    assert missing <= sum(one.rank > 0 for one in columns)


TABLE = [Column("group"), Column("state"), Column("in/s", rank=1, right=True), Column("lag", rank=2, right=True)]


@pytest.mark.parametrize(
    ("width", "heads", "note"),
    [
        (44, "group state in/s lag", ""),
        (43, "group state in/s", "too narrow for lag: --json has all"),
        (32, "group state in/s", "too narrow for lag: --json has all"),
        (31, "group state", "too narrow for in/s, lag: --json has all"),
    ],
)
def test_the_least_important_columns_go_first(width, heads, note):
    table = Fitted("", TABLE)
    table.add("site-1.edge", "[red]stalled[/]", "20", "1,234,567")
    lines = lines_of(table, width)
    assert " ".join(word for word in lines[1].split() if word != "┃") == heads
    assert note in " ".join(" ".join(lines).split())
    assert lines[3].startswith("│ site-1.edge │ stalled │")


def test_where_not_even_the_important_fit_the_widest_folds():
    table = Fitted("", TABLE)
    table.add("a-very-long-name-of-a-site.settler", "stalled", "20", "1")
    rows = cells_of(lines_of(table, 30))
    assert [cell for cell, _ in rows] == ["a-very-long-name", "-of-a-site.settl", "er"]
    assert rows[0][1] == "stalled"


def test_what_wraps_takes_the_room_that_is_left():
    table = Fitted("", [Column("member"), Column("holds", wraps=True)])
    table.add("settle-0", "site-1.answers\\[0-5] site-1.uplink.p0\\[0-5] site-1.uplink.p1\\[0-5]")
    assert [held for _, held in cells_of(lines_of(table, 60))] == [
        "site-1.answers[0-5] site-1.uplink.p0[0-5]",
        "site-1.uplink.p1[0-5]",
    ]
    assert len(cells_of(lines_of(table, 120))) == 1
