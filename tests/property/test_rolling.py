"""Workers that are started anew, die and come back as they like: never two at once, and every wish is met."""

from hypothesis import given
from hypothesis import strategies as st

from pipelines.core.rolling import IDLE_S, MEMORY_EVERY_S, MEMORY_READINGS, MEMORY_REST_S, Reason, Rolling, View

LIMIT = 1_000
NAMES = ("edge-0", "edge-1", "edge-2")


class Worker:
    """As a supervisor has it; `left` turns until it is well again."""

    def __init__(self, name: str) -> None:
        self.name, self.life, self.left, self.resident = name, 1, 0, 0

    def begin(self, turns: int) -> None:
        self.life, self.left, self.resident = self.life + 1, turns, 0

    @property
    def view(self) -> View:
        return View(self.name, self.life, True, self.left == 0, int(self.left == 0))


EVENTS = st.lists(
    st.tuples(st.sampled_from(["roll", "die", "grow", "none", "none"]), st.integers(0, 2), st.integers(0, 5)),
    max_size=60,
)


@given(events=EVENTS)
def test_never_two_at_once_and_a_roll_reaches_all(events):
    workers = [Worker(name) for name in NAMES]
    rolling = Rolling(NAMES, LIMIT)
    rolled_at: dict[str, int] = {}
    now_s = 0.0

    def turn(turns_to_come_back: int) -> None:
        nonlocal now_s
        now_s += MEMORY_EVERY_S
        for worker in workers:
            worker.left = max(worker.left - 1, 0)
            rolling.weigh(now_s, worker.name, worker.life, worker.resident)
        before = rolling.current
        chosen = rolling.next(now_s, [worker.view for worker in workers])
        if chosen is None:
            return
        assert before is None or all(one.left == 0 for one in workers if one.name == before), "the one before is back"
        name = chosen[0]
        others = [worker for worker in workers if worker.name != name]
        own = next(worker for worker in workers if worker.name == name)
        assert own.left > 0 or all(worker.left == 0 for worker in others), "a well one only while all are"
        own.begin(turns_to_come_back)

    for event, index, turns in events:
        worker = workers[index]
        if event == "roll":
            rolling.roll({one.name: one.life for one in workers})
            rolled_at = {one.name: one.life for one in workers}
        elif event == "die":
            worker.begin(turns)
        elif event == "grow":
            worker.resident = LIMIT + 1
        turn(turns)
    for _ in range(100):
        turn(2)
    assert rolling.current is None
    assert rolling.waiting == 0
    assert all(worker.life > rolled_at.get(worker.name, 0) for worker in workers)


def views(well: tuple[bool, ...], lives: tuple[int, ...] = (1, 1, 1), held: int = 1) -> list[View]:
    rows = zip(NAMES, lives, well, strict=True)
    return [View(name, life, life > 0, is_well, held if is_well else 0) for name, life, is_well in rows]


ALL_WELL = (True, True, True)
ONE_LIFE = dict.fromkeys(NAMES, 1)


def test_a_roll_goes_in_order_and_waits_for_each_to_be_back():
    rolling = Rolling(NAMES)
    rolling.roll(ONE_LIFE)
    assert rolling.next(0.0, views(ALL_WELL)) == ("edge-0", Reason.ROLL)
    assert rolling.next(1.0, views(ALL_WELL)) is None, "its old life still ends"
    assert rolling.next(2.0, views((False, True, True), (2, 1, 1))) is None
    assert rolling.next(900.0, views((False, True, True), (2, 1, 1))) is None, "however long it takes"
    assert rolling.current == "edge-0"
    assert rolling.next(901.0, views(ALL_WELL, (2, 1, 1))) == ("edge-1", Reason.ROLL)
    assert rolling.next(902.0, views(ALL_WELL, (2, 2, 1))) == ("edge-2", Reason.ROLL)
    assert rolling.next(903.0, views(ALL_WELL, (2, 2, 2))) is None
    assert (rolling.current, rolling.waiting) == (None, 0)


def test_one_without_partitions_is_back_after_a_while():
    rolling = Rolling(NAMES)
    rolling.roll(ONE_LIFE)
    assert rolling.next(0.0, views(ALL_WELL, held=0)) == ("edge-0", Reason.ROLL)
    assert rolling.next(1.0, views(ALL_WELL, (2, 1, 1), held=0)) is None
    assert rolling.next(1.0 + IDLE_S - 0.1, views(ALL_WELL, (2, 1, 1), held=0)) is None
    assert rolling.next(1.0 + IDLE_S, views(ALL_WELL, (2, 1, 1), held=0)) == ("edge-1", Reason.ROLL)


def test_one_that_is_not_well_comes_first_and_the_others_wait_for_it():
    rolling = Rolling(NAMES)
    rolling.roll(ONE_LIFE)
    assert rolling.next(0.0, views((True, False, True))) == ("edge-1", Reason.ROLL)
    assert rolling.next(1.0, views((True, False, True), (1, 2, 1))) is None
    assert rolling.next(2.0, views(ALL_WELL, (1, 2, 1))) == ("edge-0", Reason.ROLL)


def test_one_that_died_since_needs_no_other_life_and_one_that_does_not_run_is_waited_for():
    rolling = Rolling(NAMES)
    rolling.roll(ONE_LIFE)
    assert rolling.next(0.0, views((False, True, True), (0, 1, 1))) is None
    assert rolling.next(1.0, views(ALL_WELL, (2, 1, 1))) == ("edge-1", Reason.ROLL)


def test_memory_must_stay_above_and_then_rests():
    rolling = Rolling(NAMES, LIMIT)
    now_s = 0.0

    def weigh(life: int, *readings: int) -> None:
        nonlocal now_s
        for resident in readings:
            now_s += MEMORY_EVERY_S
            rolling.weigh(now_s, "edge-1", life, resident)

    above = [LIMIT + 1] * MEMORY_READINGS
    weigh(1, *above[1:], LIMIT, *above[1:])
    assert rolling.next(now_s, views(ALL_WELL)) is None
    weigh(2, *above[1:])
    assert rolling.next(now_s, views(ALL_WELL, (1, 2, 1))) is None, "a new life begins to count anew"
    weigh(2, LIMIT + 1)
    began_s = now_s
    assert rolling.next(now_s, views(ALL_WELL, (1, 2, 1))) == ("edge-1", Reason.MEMORY)
    while now_s + MEMORY_EVERY_S < began_s + MEMORY_REST_S:
        weigh(3, LIMIT + 1)
        assert rolling.next(now_s, views(ALL_WELL, (1, 3, 1))) is None, "it rests"
    weigh(3, LIMIT + 1)
    assert rolling.next(now_s, views(ALL_WELL, (1, 3, 1))) == ("edge-1", Reason.MEMORY)


def test_without_a_limit_nothing_is_too_much():
    rolling = Rolling(NAMES)
    for now_s in range(10):
        rolling.weigh(now_s, "edge-0", 1, 1 << 50)
    assert rolling.next(10.0, views(ALL_WELL)) is None
