"""A table that fits the terminal: what does not fit is left out by columns, the least important first, and named.

Constraints
- A cell is never cut. A column that `wraps` breaks at spaces; all others stay on one line.
- Columns of rank 0 are never left out. Where not even they fit, the widest of them fold, down to `NARROWEST`.
- The width is that of the display at the moment, so a table that is shown live follows it.
"""

from collections.abc import Sequence

import msgspec
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

NARROWEST = 8
"""Of a column that folds."""

BORDERS = 3
"""Characters that a column takes beside its own: a line and two spaces. The last line is one more."""


class Column(msgspec.Struct, frozen=True):
    """One column."""

    name: str = ""
    rank: int = 0
    """The highest goes first; 0 stays."""
    right: bool = False
    wraps: bool = False


class Fitted:
    """Rows of cells in rich's markup, below a line of their own as the title."""

    def __init__(self, title: str, columns: Sequence[Column]) -> None:
        self._title, self._columns = title, columns
        self._rows: list[tuple[Sequence[str], bool]] = []
        self._begins_section = False

    def add(self, *cells: str) -> None:
        """One more row: a cell for every column, those that may be left out too."""
        self._rows.append((cells, self._begins_section))
        self._begins_section = False

    def section(self) -> None:
        """A line, before the next row."""
        self._begins_section = bool(self._rows)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        kept, widths = self._fit(options.max_width)
        if self._title:
            yield Text(self._title, style="table.title")
        table = Table()
        for index, width in zip(kept, widths, strict=True):
            column = self._columns[index]
            table.add_column(column.name, width=width, overflow="fold", justify="right" if column.right else "left")
        for cells, begins_section in self._rows:
            if begins_section:
                table.add_section()
            table.add_row(*(cells[index] for index in kept))
        yield table
        left_out = [column.name for index, column in enumerate(self._columns) if index not in kept]
        if left_out:
            yield Text(f"too narrow for {', '.join(left_out)}: --json has all", style="dim")

    def _fit(self, width: int) -> tuple[Sequence[int], Sequence[int]]:
        """The columns that are shown, and how wide each is."""
        least, most = zip(*(self._widths(index) for index in range(len(self._columns))), strict=True)
        kept = list(range(len(self._columns)))
        while _total(kept, least) > width:
            last = max(kept, key=lambda index: self._columns[index].rank)
            if not self._columns[last].rank:
                break
            kept.remove(last)
        widths = [least[index] for index in kept]
        missing = _total(kept, least) - width
        while missing > 0 and max(widths) > NARROWEST:
            widths[widths.index(max(widths))] -= 1
            missing -= 1
        for place, index in reversed(list(enumerate(kept))):  # What is left goes to those that would wrap.
            more = max(min(most[index] - widths[place], -missing), 0)
            widths[place] += more
            missing += more
        return kept, widths

    def _widths(self, index: int) -> tuple[int, int]:
        """The least that a column needs, and the most that it can use."""
        column = self._columns[index]
        words = [len(word) for word in column.name.split()]
        cells = [Text.from_markup(cells[index]) for cells, _ in self._rows]
        most = max((one.cell_len for one in cells), default=0)
        least = max((part.cell_len for one in cells for part in one.split(" ")), default=0) if column.wraps else most
        return max([least, *words]), max(most, len(column.name))


def _total(kept: Sequence[int], widths: Sequence[int]) -> int:
    return sum(widths[index] + BORDERS for index in kept) + 1
