"""What `lag`, `status` and `top` print, and how long they look."""

import io
import re

import msgspec
import pytest
from rich.console import Console
from typer import Exit

from pipelines.cli import looking
from pipelines.cli.standing import concerns, drain, groups_table, holding, is_well, members_table, partitions_table
from pipelines.core.lag import GroupLag, Member, PartitionLag, State
from pipelines.observe.lag import Reading
from schemas.topics import Tier


def part(number, state=State.OK, **given):
    known = dict.fromkeys(("committed", "end", "lag_records"), 0) | {"in_per_s": 0.0, "out_per_s": 0.0}
    defaults = {"seconds_behind": 0.0, "drain_s": 0.0, "owner": ""}
    return PartitionLag(topic="s.items", partition=number, state=state, **(known | defaults | given))


def group(*parts, members=(), state=State.OK):
    return GroupLag("edge", "s.edge", Tier.EDGE, list(members), list(parts), 1234, 61.25, 5.25, 1500.0, None, state)


def reading(*groups, streams=None, **away):
    return Reading(0, list(groups), streams or {}, {Tier(tier): problem for tier, problem in away.items()})


def shown(*what):
    console = Console(file=io.StringIO(), width=160)
    for one in what:
        console.print(one)
    return console.file.getvalue()


def test_a_group_is_one_row_and_its_partitions_stand_below_it():
    one = group(part(0, committed=41_000, end=42_234, owner="edge-0"), part(1, State.STALLED), state=State.STALLED)
    text = shown(groups_table([one], "groups"))
    for words in ("s.edge", "stalled", "61.2 s", "1,234", "5.2", "1,500", "never"):
        assert words in text
    text = shown(partitions_table([one], "lag"))
    for words in ("s.items[0]", "41,000", "42,234", "edge-0", "s.items[1]", "stalled"):
        assert words in text


def narrow(width, *what):
    console = Console(file=io.StringIO(), width=width)
    for one in what:
        console.print(one)
    text = console.file.getvalue()
    assert "…" not in text
    assert all(len(line) <= width for line in text.splitlines())
    return text


@pytest.mark.parametrize("width", [60, 80, 140])
def test_whatever_the_width_an_operator_reads_who_is_how_far_behind_and_in_what_state(width):
    far = part(
        11, State.STALLED, lag_records=1_234_567, seconds_behind=86_412.5, owner="uplink-0.acc640e636f7", hot=True
    )
    one = GroupLag(
        "downlink", "downlink.site-1", Tier.CLOUD, [], [far], 1_234_567, 86_412.5, 1e4, 0.0, None, State.STALLED
    )
    groups = narrow(width, groups_table([one], "groups"))
    assert re.search(r"│ downlink\.site-1 +│ stalled +│ +86412\.5 s │", groups)
    parts = narrow(width, partitions_table([one], "lag"))
    assert re.search(r"│   s\.items\[11\] +│.* 86412\.5 s │.* stalled hot +│", parts)
    if width >= 80:
        assert re.search(r"10,000 │ +0 │ +never │", groups)
        assert "uplink-0.acc640e636f7 │" in parts
    if width == 140:
        assert "too narrow" not in groups + parts


def test_members_do_not_break_within_a_topic_in_eighty_columns():
    held = [(f"site-1.{topic}", number) for topic in ("answers", "uplink.p0", "uplink.p1") for number in range(6)]
    one = reading(group(members=[Member("uplink-0.acc640e636f7", "10.0.0.5", held)]), streams={"cam-00": 0})
    text = narrow(80, members_table(one))
    for words in ("uplink-0.acc640e636f7", "site-1.answers[0-5]", "site-1.uplink.p0[0-5]", "1: cam-00"):
        assert words in text


def test_members_are_shown_with_what_they_hold_and_the_streams_there():
    held = [("s.items", 0), ("s.items", 1), ("s.items", 3), ("s.more", 3)]
    one = reading(group(members=[Member("edge-0", "10.0.0.5", held)]), streams={"b": 0, "a": 3, "d": 2, "c": 1, "e": 3})
    assert holding(one.groups[0].members[0]) == "s.items\\[0-1,3] s.more\\[3]"
    text = shown(members_table(one))
    for words in ("edge-0", "10.0.0.5", "s.items[0-1,3] s.more[3]", "4: b, c, a, ..."):
        assert words in text


def test_what_is_wrong_is_named_by_partition_and_what_is_well_is_not():
    assert concerns(reading(group(part(0)))) == []
    bad = group(part(0), part(1, State.STALLED), part(2, State.STALLED), part(3, State.SLOW, hot=True, in_per_s=900.0))
    lines = shown(*concerns(reading(bad, cloud="kafka.cloud: no Kafka answers")))
    assert "away: kafka.cloud: no Kafka answers" in lines
    assert "stalled: edge: s.items[1], s.items[2]: its worker has done nothing" in lines
    assert "slow: edge: s.items[3]" in lines
    assert "hot: edge: s.items[3] 900/s" in lines


@pytest.mark.parametrize("state", list(State))
def test_slow_is_well_and_everything_worse_is_not(state):
    assert is_well(reading(group(part(0, state), state=state))) == (state in (State.OK, State.SLOW))
    assert not is_well(reading(group(), edge="away"))


def test_no_backlog_is_a_dash():
    assert [drain(0.0), drain(12.4), drain(None)] == ["-", "12 s", "never"]


class Reader:
    """Is undecided for a number of readings."""

    def __init__(self, undecided):
        self.left = undecided + 1
        self.taken = 0

    def read(self):
        self.taken += 1
        self.left -= 1
        return self.taken

    @property
    def undecided(self):
        return self.left > 0


@pytest.fixture
def clock(monkeypatch):
    """Time passes by sleeping only."""
    now = [0.0]
    monkeypatch.setattr(looking.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(looking.time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    return now


@pytest.mark.parametrize(("undecided", "taken"), [(0, 2), (4, 5), (10_000, 15)])
def test_it_looks_again_only_while_something_is_undecided_and_not_for_ever(clock, undecided, taken):
    said = []
    reader = Reader(undecided)
    assert looking.look(reader, said.append) == taken
    assert len(said) == taken - 2
    assert reader.taken == taken


def test_readings_follow_each_other_an_interval_apart_and_none_is_caught_up_on(clock, capsys):
    begun = []

    def slow_once():
        begun.append(clock[0])
        clock[0] += 2.5 if len(begun) == 2 else 0.25
        return reading()

    looking.follow(slow_once, lambda _: "", as_json=True, interval_s=1.0, count=5)
    assert begun == [0.0, 1.0, 3.5, 4.5, 5.5]
    lines = capsys.readouterr().out.splitlines()
    assert [msgspec.json.decode(line, type=Reading) for line in lines] == [reading()] * 5


def test_an_interrupt_ends_with_130():
    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(Exit) as ended:
        looking.follow(interrupted, lambda _: "", as_json=False)
    assert ended.value.exit_code == 130
