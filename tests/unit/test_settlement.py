"""Settlement in single cases: what a result says, how answers outlive rebalances, and what the limits do."""

import msgspec

from pipelines.core.endings import Ending
from pipelines.core.ledger import MarkBook
from pipelines.core.settlement import AnswersSeen, Clock, Count, Counted, Limits, RecordSeen, Settlement
from pipelines.transport.base import Commit
from schemas.answers import Answer, AnswerKind
from schemas.headers import Extra, Header, Origin
from schemas.ledger import Outcome
from schemas.results import Result
from schemas.topics import SiteTopics

TOPICS = SiteTopics("harbour")
NUMBER = 3
ALL = [*TOPICS.uplinks, TOPICS.answers]


def assigned() -> Settlement:
    settlement = Settlement(TOPICS, NUMBER)
    for topic in ALL:
        settlement.assign(topic, Commit(0))
    return settlement


def ended(header: Header, *answers: Answer) -> Ending:
    """How the record of `header` at offset 0 ends with these answers."""
    settlement = assigned()
    settlement.handle(RecordSeen(0, 0, header))
    instructions = [
        *settlement.handle(AnswersSeen(0, answers, 0)),
        *settlement.handle(Clock(header.deadline_us + 1)),
    ]
    (ending,) = instructions
    assert isinstance(ending, Ending)
    return ending


HEADER = Header(1, "cam-0", 2, 40, 1, 100, 900, 0, "raw", model="edge@1", extra=Extra("7", 0.4, "below_threshold"))
ANSWERED = Answer("cam-0", 2, 40, Origin(0, NUMBER, 0), AnswerKind.ANSWERED, "8", 0.99, "cloud@1")


def test_the_clouds_result_keeps_what_the_edge_had_said() -> None:
    (result,) = ended(HEADER, ANSWERED).results(settled_us=500)
    assert result == Result(
        "cam-0", 2, 40, 100, 500, Outcome.ANSWERED_CLOUD, "8", 0.99, "cloud@1", "below_threshold", "7", 0.4
    )


def test_the_edges_answer_is_the_result_where_the_cloud_was_silent() -> None:
    (result,) = ended(HEADER).results(settled_us=901)
    assert result == Result("cam-0", 2, 40, 100, 901, Outcome.ANSWERED_EDGE_FALLBACK, "7", 0.4, "edge@1", "deadline")


def test_marks_have_a_reason_only_where_nobody_answered() -> None:
    bare = msgspec.structs.replace(HEADER, extra=Extra())
    refused = msgspec.structs.replace(ANSWERED, kind=AnswerKind.DEAD_LETTERED, reason="undecodable")
    found = []
    for header, answers in ((HEADER, [ANSWERED]), (HEADER, [refused]), (HEADER, []), (bare, [refused]), (bare, [])):
        book = MarkBook()
        ending = ended(header, *answers)
        ending.enter(book)
        found += [(mark.outcome, mark.reason, len(ending.results(0))) for mark in book.marks()]
    assert found == [
        (Outcome.ANSWERED_CLOUD, "", 1),
        (Outcome.ANSWERED_EDGE_FALLBACK, "", 1),
        (Outcome.ANSWERED_EDGE_FALLBACK, "", 1),
        (Outcome.DEAD_LETTERED, "undecodable", 0),
        (Outcome.EXPIRED, "", 0),
    ]


def test_a_silent_hour_at_the_default_limits_stays_within_them() -> None:
    """Nothing answers, nothing is due: far more records than the window and what may lie ahead."""
    limits = Limits(ahead_bytes=2_000 * 1024)
    settlement = Settlement(TOPICS, NUMBER, limits)
    settlement.assign(TOPICS.uplinks[0], Commit(0))
    forced = 0
    records = limits.window_offsets + 2_000 + 50
    for offset in range(records):
        header = msgspec.structs.replace(HEADER, first_seq=offset, deadline_us=10**9)
        forced += sum(isinstance(one, Ending) for one in settlement.handle(RecordSeen(0, offset, header)))
    assert forced == 50
    settled = 0
    for _ in range(2):
        settled += sum(ending.count for ending in settlement.handle(Clock(10**9 + 1)) if isinstance(ending, Ending))
    assert forced + settled == records
    assert settlement.commits() == {(TOPICS.uplinks[0], NUMBER): Commit(records)}


PACK = msgspec.structs.replace(HEADER, count=2)
SECOND = msgspec.structs.replace(ANSWERED, seq=41)


def test_an_answer_outlives_the_going_and_coming_of_its_records_partition() -> None:
    settlement = assigned()
    settlement.handle(RecordSeen(0, 0, PACK))
    settlement.handle(AnswersSeen(0, [ANSWERED], 0))
    settlement.release(TOPICS.uplinks[0])
    assert settlement.commits()[TOPICS.answers, NUMBER] == Commit(0)
    settlement.handle(Clock(1))
    settlement.assign(TOPICS.uplinks[0], Commit(0))
    settlement.handle(RecordSeen(0, 0, PACK))
    endings = settlement.handle(AnswersSeen(1, [SECOND], 0))
    assert [ending.answer for ending in endings if isinstance(ending, Ending)] == [ANSWERED, SECOND]
    assert settlement.commits()[TOPICS.answers, NUMBER] == Commit(2)


def test_answers_that_are_read_again_count_once() -> None:
    settlement = assigned()
    settlement.handle(RecordSeen(0, 0, PACK))
    settlement.handle(AnswersSeen(0, [ANSWERED], 0))
    settlement.assign(TOPICS.answers, Commit(0))
    assert settlement.handle(AnswersSeen(0, [ANSWERED], 0)) == []
    assert settlement.commits()[TOPICS.answers, NUMBER] == Commit(0)


def test_an_early_answer_to_what_proves_settled_is_late() -> None:
    """The answer came while the record's partition was away, and the commit that it comes with says it is settled."""
    settlement = assigned()
    for offset in range(2):
        settlement.handle(RecordSeen(0, offset, msgspec.structs.replace(HEADER, first_seq=40 + offset)))
    later = msgspec.structs.replace(SECOND, origin=Origin(0, NUMBER, 1))
    settlement.handle(AnswersSeen(0, [later], 0))
    commit = settlement.commits()[TOPICS.uplinks[0], NUMBER]
    settlement.release(TOPICS.uplinks[0])
    assert settlement.handle(AnswersSeen(1, [later], 0)) == []
    settlement.assign(TOPICS.uplinks[0], commit)
    settlement.handle(RecordSeen(0, 0, HEADER))
    again = RecordSeen(0, 1, msgspec.structs.replace(HEADER, first_seq=41))
    assert settlement.handle(again) == [Count(Counted.LATE_ANSWER)]
    assert settlement.commits()[TOPICS.answers, NUMBER] == Commit(2)


def test_an_early_answer_waits_longer_for_a_record_that_was_read_ahead() -> None:
    settlement = Settlement(TOPICS, NUMBER, Limits(window_offsets=1, hold_us=10))
    for topic in ALL:
        settlement.assign(topic, Commit(0))
    waiting = msgspec.structs.replace(HEADER, first_seq=41)
    settlement.handle(RecordSeen(0, 0, HEADER))
    settlement.handle(RecordSeen(0, 1, waiting))
    to_waiting = msgspec.structs.replace(SECOND, origin=Origin(0, NUMBER, 1))
    to_nothing = msgspec.structs.replace(SECOND, origin=Origin(0, NUMBER, 99))
    settlement.handle(AnswersSeen(0, [to_waiting, to_nothing], 0))
    assert settlement.handle(Clock(20)) == [Count(Counted.UNMATCHED_ANSWER)]
    endings = settlement.handle(AnswersSeen(1, [ANSWERED], 20))
    assert [ending.answer for ending in endings if isinstance(ending, Ending)] == [ANSWERED, to_waiting]
