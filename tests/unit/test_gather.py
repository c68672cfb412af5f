"""What a supervisor answers for its workers: real sockets, and workers that are as the test has them."""

import re
import shutil
import subprocess
import urllib.error
import urllib.request
from contextlib import ExitStack, closing
from types import SimpleNamespace

import pytest

from pipelines.core.progress import START_S, Doing
from pipelines.core.rolling import Reason
from pipelines.observe.gather import TURN_MOST_S, Board, merge, parse
from pipelines.observe.instruments import Instruments
from pipelines.observe.metrics import BATCH_SECONDS, HEALTHY, HELD, ITEMS, RESTARTS
from pipelines.observe.serve import Address, served

NAMES = ("edge-0", "edge-1")
ANY_PORT = Address("127.0.0.1", 0, True, "the test")


def get(where: str, path: str, accept: str = "") -> tuple[int, str]:
    request = urllib.request.Request(f"http://{where}{path}", headers={"Accept": accept} if accept else {})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@pytest.fixture
def fleet(tmp_path):
    """Two workers that serve, a board over them and where it is served; `now_s` is everybody's clock."""
    one = SimpleNamespace(now_s=0.0, workers={}, closed={})
    with ExitStack() as stack:
        sockets = {name: tmp_path / f"{name}.sock" for name in NAMES}
        for name, path in sockets.items():
            one.workers[name] = Instruments("edge", "shop", lambda: one.now_s)
            one.closed[name] = stack.enter_context(ExitStack())
            one.closed[name].enter_context(served(one.workers[name], Address("", 0, True, "the test", str(path))))
            one.workers[name].at(Doing.READING)
        one.board = stack.enter_context(closing(Board("edge", "shop", sockets, lambda: one.now_s)))
        one.board.turned(dict.fromkeys(NAMES, 1.0))
        one.where = stack.enter_context(served(one.board, ANY_PORT))
        yield one


def test_one_scrape_has_every_worker_with_its_label_and_exact_values(fleet, require):
    for number, instruments in enumerate(fleet.workers.values()):
        instruments.meters.add(ITEMS, 3 + number, "shed", 'la"te\\')
        instruments.meters.observe(BATCH_SECONDS, 0.1 + number)
        instruments.meters.watch(HELD, lambda number=number: 4 + number)
    fleet.board.restarted("edge-1", Reason.MEMORY)
    status, text = get(fleet.where, "/metrics")
    assert status == 200
    of = 'kind="edge",{}site="shop",worker="edge-{}"'
    shed = of.format('outcome="shed",reason="la\\"te\\\\",', "{}")
    for line in (
        f"{ITEMS}{{{shed.format(0)}}} 3.0",
        f"{ITEMS}{{{shed.format(1)}}} 4.0",
        f"{BATCH_SECONDS}_sum{{{of.format('', 0)}}} 0.1",
        f"{BATCH_SECONDS}_sum{{{of.format('', 1)}}} 1.1",
        f"{HEALTHY}{{{of.format('', 1)}}} 1.0",
        f"{RESTARTS}{{{of.format('reason=' + chr(34) + 'memory' + chr(34) + ',', 1)}}} 1.0",
        f"{RESTARTS}{{{of.format('reason=' + chr(34) + 'ended' + chr(34) + ',', 0)}}} 0.0",
    ):
        assert line in text.splitlines(), text
    assert len(re.findall(r"^# TYPE tidegate_healthy ", text, re.MULTILINE)) == 1
    samples = [line for line in text.splitlines() if not line.startswith("#")]
    assert all('worker="edge-' in line for line in samples), "the supervisor adds nothing without a worker"
    promtool = shutil.which("promtool")
    require("promtool", promtool, "install Debian's package prometheus")
    done = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    assert done.stdout + done.stderr == ""
    assert fleet.board.held() == {"edge-0": 4, "edge-1": 5}
    assert get(fleet.where, "/metrics", "application/openmetrics-text")[1].endswith("# EOF\n")


def test_what_is_handed_on_is_what_the_worker_exports():
    text = '# HELP a_total of a\n# TYPE a_total counter\na_total{b="c"} 0.1\n# HELP g of g\n# TYPE g gauge\ng +Inf\n'
    merged = merge({"w": parse(text)})
    assert {name: (one.type, one.documentation) for name, one in merged.items()} == {
        "a": ("counter", "of a"),
        "g": ("gauge", "of g"),
    }
    assert [(one.name, one.labels, one.value) for family in merged.values() for one in family.samples] == [
        ("a_total", {"b": "c", "worker": "w"}, 0.1),
        ("g", {"worker": "w"}, float("inf")),
    ]


def test_health_names_the_worker_that_is_not_well(fleet):
    assert get(fleet.where, "/healthz") == get(fleet.where, "/livez") == (200, "2 workers are well\n")
    fleet.workers["edge-1"].at(Doing.WORKING)
    fleet.now_s = 21.0
    line = "edge-1: its loop has stood still for 21 s, working on a batch\n"
    assert get(fleet.where, "/healthz") == get(fleet.where, "/livez") == (503, line)
    fleet.workers["edge-1"].at(Doing.READING)
    fleet.closed["edge-1"].close()
    assert get(fleet.where, "/healthz") == (503, "edge-1: no answer\n")
    assert get(fleet.where, "/livez")[0] == 200, "it has only just begun"
    text = get(fleet.where, "/metrics")[1]
    assert f'{HEALTHY}{{kind="edge",site="shop",worker="edge-0"}} 1.0' in text
    assert f'{HEALTHY}{{kind="edge",site="shop",worker="edge-1"}} 0.0' in text
    assert fleet.board.held()["edge-1"] == 0
    fleet.board.turned({"edge-1": START_S + 1})
    assert get(fleet.where, "/livez") == (503, "edge-1: no answer\n")
    fleet.board.turned({"edge-1": 0.0})
    assert get(fleet.where, "/healthz") == (503, "edge-1: it does not run\n")
    assert get(fleet.where, "/livez")[0] == 200, "its supervisor starts it"
    fleet.closed["edge-0"].close()
    assert f'{HEALTHY}{{kind="edge",site="shop",worker="edge-0"}} 0.0' in get(fleet.where, "/metrics")[1]


def test_a_supervisor_that_stands_still_hangs_and_one_that_stops_is_not_ready(fleet):
    fleet.now_s = TURN_MOST_S + 1
    for instruments in fleet.workers.values():
        instruments.at(Doing.READING)
    line = f"the supervisor's loop has stood still for {TURN_MOST_S + 1:.0f} s\n"
    assert get(fleet.where, "/healthz") == get(fleet.where, "/livez") == (503, line)
    fleet.board.turned({})
    fleet.board.stopping = True
    assert get(fleet.where, "/healthz") == (503, "stopping\n")
