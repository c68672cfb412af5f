"""When a worker counts as well: whatever it does, as long as it does it in time."""

from hypothesis import given
from hypothesis import strategies as st

from pipelines.core.progress import CALM_S, FAILING_S, MOST_S, SITTING_S, START_S, Doing, Progress
from pipelines.core.work import WorkMeans, WorkNote, capacity_per_s

TURNS = st.lists(st.tuples(st.sampled_from([Doing.READING, Doing.WORKING, Doing.WRITING]), st.integers(0, 60)))
EDGE = 0.001


@given(began_s=st.integers(0, 10**6), turns=TURNS)
def test_a_loop_that_turns_in_time_is_well(began_s, turns):
    progress, now_s = Progress(began_s), began_s
    for doing, took_s in turns:
        progress.at(now_s, doing)
        now_s += min(took_s, int(MOST_S[doing]))
        assert progress.why_not(now_s) == progress.why_hung(now_s) == ""


@given(doing=st.sampled_from([doing for doing in Doing if doing is not Doing.IDLE]), late_s=st.floats(EDGE, 1e6))
def test_a_loop_that_stands_still_is_not_and_says_at_what(doing, late_s):
    progress = Progress(0.0)
    progress.at(5.0, doing)
    assert progress.why_not(5.0 + MOST_S[doing]) == progress.why_hung(5.0 + MOST_S[doing]) == ""
    hung_s = 5.0 + MOST_S[doing] + late_s
    assert progress.why_hung(hung_s).endswith(str(doing))
    assert progress.why_not(hung_s) == progress.why_hung(hung_s)
    progress.at(6.0 + MOST_S[doing] + late_s, Doing.READING)
    assert progress.why_not(6.0 + MOST_S[doing] + late_s) == ""


TIMELY = st.tuples(st.sampled_from(Doing), st.floats(0, 1), st.sampled_from(["failed", "read", "done", "unread", ""]))


@given(turns=st.lists(TIMELY, min_size=1))
def test_a_loop_that_turns_is_not_hung_whatever_comes_of_it(turns):
    progress, now_s = Progress(0.0), 0.0
    for doing, share, then in turns:
        progress.at(now_s, doing)
        now_s += share * min(MOST_S[doing], 1e6)
        assert progress.why_hung(now_s) == ""
        if then == "unread":
            progress.unread(now_s, some=True)
        elif then == "failed":
            progress.failed(now_s, "away")
        elif then:
            getattr(progress, then)(now_s)
        assert progress.why_hung(now_s) == ""


@given(tries=st.integers(int(FAILING_S) + 2, 10_000))
def test_who_fails_again_and_again_is_not_well_but_its_loop_turns(tries):
    progress = Progress(0.0)
    for now_s in range(tries):
        progress.at(now_s, Doing.READING)
        progress.failed(now_s, "no broker answers")
        progress.at(now_s, Doing.WAITING)
    assert progress.why_not(tries) == f"it has failed {tries} times in {tries} s: no broker answers"
    assert progress.why_hung(tries) == ""


def test_a_worker_may_wait_for_its_source_without_end_but_not_start_without_end():
    progress = Progress(0.0)
    assert progress.why_not(START_S) == ""
    assert "starting" in progress.why_not(START_S + EDGE)
    progress.at(1.0, Doing.IDLE)
    assert progress.why_not(1e9) == ""


@given(pauses_s=st.lists(st.integers(0, int(CALM_S)), min_size=1, max_size=50), done_at=st.none() | st.integers(0, 49))
def test_failures_count_while_nothing_is_done_and_no_calm_lies_between(pauses_s, done_at):
    progress, now_s, first_s, failures = Progress(0.0), 0.0, None, 0
    for number, pause_s in enumerate(pauses_s):
        progress.at(now_s, Doing.WAITING)
        if number == done_at:
            progress.done(now_s)
            first_s, failures = None, 0
        else:
            progress.failed(now_s, "no broker\nanswers")
            first_s, failures = now_s if first_s is None else first_s, failures + 1
        now_s += pause_s
        progress.at(now_s, Doing.READING)
        progress.read(now_s)  # Reading alone is no success: what is read may fail to be written again and again.
        assert progress.failures_in_a_row(now_s) == failures
        said = progress.why_not(now_s)
        failing = first_s is not None and now_s - first_s > FAILING_S
        assert said.endswith(": no broker answers") if failing else said == ""


def test_a_calm_ends_a_row_of_failures_even_if_there_is_nothing_to_do():
    progress = Progress(0.0)
    for now_s in range(0, 40, 2):
        progress.failed(float(now_s), "away")
    progress.at(38.0, Doing.READING)
    assert progress.why_not(38.0)
    assert progress.why_not(38.0 + CALM_S + EDGE) == ""
    assert progress.failures_in_a_row(38.0 + CALM_S + EDGE) == 0
    progress.failed(80.0, "away")
    progress.at(80.0, Doing.READING)
    assert (progress.why_not(80.0), progress.failures_in_a_row(80.0)) == ("", 1)


@given(looks=st.lists(st.tuples(st.integers(1, int(SITTING_S)), st.sampled_from(["unread", "none", "read"]))))
def test_sitting_before_records_is_told_once_it_has_lasted(looks):
    progress, now_s, since_s = Progress(0.0), 0.0, None
    for pause_s, what in looks:
        now_s += pause_s
        progress.at(now_s, Doing.READING)
        if what == "read":
            progress.read(now_s)
            since_s = None
        else:
            progress.unread(now_s, some=what == "unread")
            since_s = None if what == "none" else now_s if since_s is None else since_s
        sitting = since_s is not None and now_s - since_s > SITTING_S
        assert ("has read none" in progress.why_not(now_s)) == sitting


@given(
    batches=st.lists(st.tuples(st.floats(0, 100), st.integers(1, 500), st.floats(1.0, 1e6)), min_size=1),
    commits=st.lists(st.floats(1.0, 1e6), min_size=1),
    interval_us=st.sampled_from([0, 50_000]),
)
def test_a_worker_s_note_is_a_mean_of_what_it_did_and_survives_the_commit(batches, commits, interval_us):
    means, at_s = WorkMeans(), 0.0
    for pause_s, records, took_us in batches:
        at_s += pause_s
        means.batch(at_s, records, took_us)
    for took_us in commits:
        means.commit(at_s, took_us)
    note = means.note("edge-0", interval_us)
    costs = [took_us / records for _, records, took_us in batches]
    assert min(costs) * 0.999 <= note.record_us <= max(costs) * 1.001
    assert min(commits) * 0.999 <= note.commit_us <= max(commits) * 1.001
    assert note.capacity_per_s == capacity_per_s(note.record_us, note.commit_us, interval_us)
    read = WorkNote.read(str(note))
    assert read is not None
    assert read.worker == "edge-0"
    assert abs(read.record_us - note.record_us) <= 0.051


def test_what_a_worker_did_long_ago_hardly_counts():
    means = WorkMeans()
    means.batch(0.0, 500, 500 * 1_000.0)
    means.batch(30.0, 100, 100 * 10.0)
    assert means.note("edge-0", 50_000).record_us < 50
    assert WorkMeans().note("edge-0", 50_000).capacity_per_s == 0
