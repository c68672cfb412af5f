"""Tidegate as its user has it: commands in processes of their own, a folder of images, a model made for the test.

What a command started is found again by an environment variable that every child inherits, so that a test can say
that nothing of it is left running.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import cv2
import numpy as np
import onnx
import psutil
import pytest
from onnx import TensorProto, helper, numpy_helper

from pipelines.config.home import Running, read_running
from pipelines.errors import BrokerError
from pipelines.transport.base import Aborted, OutRecord
from pipelines.transport.kafka import KafkaCluster
from schemas.topics import SiteTopics

MARK = "TIDEGATE_TEST_USER"
COMMAND_S = 150
"""A bound on one command, for a machine that is stuck."""
LEAVE_S = 40
"""A bound on the end of everything a command started: workers have 10 s of grace, so have brokers."""

LOOK_AGAIN_S = 0.1
MOMENT_S = 60
"""A bound on what one life waits for of another."""

LABELS = ("red", "green", "blue")


class Steered(KafkaCluster):
    """Its writers do at their n-th call what a test says: `at["start", 2]` is handed the second start to make.

    Calls are `start` and `write`, those of a claim `claim.start` and `claim.write`. One life's own cluster.
    """

    def __init__(self, name: str, bootstrap: str) -> None:
        super().__init__(name, bootstrap)
        self.at: Mapping[tuple[str, int], Callable[[Callable[[], None]], None]] = {}
        self.calls: Counter[str] = Counter()
        self.written: list[list[OutRecord]] = []
        """But for claims."""

    def transactions(self, transactional_id: str, *given: Any) -> Any:
        writer = super().transactions(transactional_id, *given)
        start, write = writer.start, writer.write
        of_claim = "claim." if transactional_id.endswith(".owner") else ""

        def steered(name: str, call: Callable[[], None]) -> None:
            self.calls[of_claim + name] += 1
            do = self.at.get((of_claim + name, self.calls[of_claim + name]))
            if do is None:
                return call()
            try:
                do(call)
            except Aborted:
                writer.close()  # As after a refusal that the client does not survive: only `start` mends it.
                raise

        def steered_write(records: Sequence[OutRecord]) -> None:
            if not of_claim:
                self.written.append(list(records))
            steered("write", lambda: write(records))

        writer.start = lambda: steered("start", start)
        writer.write = steered_write
        return writer


@pytest.fixture(scope="session")
def steered() -> type[Steered]:
    """A cluster whose writers do at a call what a test says."""
    return Steered


def refuse(call: Callable[[], None]) -> None:
    """A refusal that the client does not survive."""
    raise Aborted("refused by the test")


class Moment(threading.Event):
    """Something that one life waits for and another does."""

    def after(self, call: Callable[[], None]) -> None:
        """It has come when `call` is made."""
        call()
        self.set()

    def before(self, call: Callable[[], None]) -> None:
        """`call` is made when it has come."""
        assert self.wait(MOMENT_S), "it never came"
        call()


class Race:
    """Two lives under one transactional id, the newer begun when the older says so; one of the ways that it may go.

    Each has the cluster on which both write as its own, `older` and `newer`. Lives end where `stop` is set.
    """

    def __init__(self, bootstrap: str) -> None:
        self.older, self.newer = Steered("kafka.older", bootstrap), Steered("kafka.newer", bootstrap)
        self.stop = threading.Event()
        self._begun, self._over = Moment(), Moment()
        """The newer life, and the older one."""
        self._until_over: list[Moment] = []
        """Come at the latest then: a transaction that timed out takes another way to the same end."""

    def newer_has_written_nothing(self) -> None:
        """The newer life has started, fenced the older and written nothing before that has ended."""
        started = Moment()
        self.older.at = {("write", 3): self._then_newer(started)}
        self.newer.at = {("start", 1): started.after, ("write", 1): self._over.before}

    def older_fences_back(self) -> None:
        """The older life has looked who owns the id before the newer claims it, and starts after that has started."""
        started, fenced, again = Moment(), Moment(), Moment()
        self._until_over = [fenced]

        def hand_over(call: Callable[[], None]) -> None:
            fenced.set()
            again.before(call)

        def hold(call: Callable[[], None]) -> None:
            started.set()
            fenced.before(call)

        self.older.at = {("write", 3): refuse, ("start", 2): self._then_newer(started), ("write", 5): hand_over}
        self.newer.at = {("write", 1): hold, ("start", 2): again.after}

    def older_claims_slowly(self) -> None:
        """The newer life claims and works while the older is about to write its claim."""
        works = Moment()
        self.older.at = {("claim.write", 1): self._then_newer(works)}
        self.newer.at = {("write", 2): works.after}

    def _then_newer(self, reached: Moment) -> Callable[[Callable[[], None]], None]:
        """Let the newer life begin, and go on when it has `reached` something."""

        def do(call: Callable[[], None]) -> None:
            self._begun.set()
            reached.before(call)

        return do

    def run(self, older: Callable[[], None], newer: Callable[[], None]) -> BaseException | None:
        """Both to their ends. What the older raises; what the newer does is a failure."""

        def over(_: Any) -> None:
            for moment in (self._begun, self._over, *self._until_over):
                moment.set()

        with ThreadPoolExecutor(2) as pool:
            try:
                first = pool.submit(older)
                first.add_done_callback(over)
                assert self._begun.wait(MOMENT_S)
                second = pool.submit(newer)
                second.result(2 * MOMENT_S)
                return first.exception(MOMENT_S)
            finally:
                self.stop.set()

    def close(self) -> None:
        self.older.close()
        self.newer.close()


@pytest.fixture(params=["newer_has_written_nothing", "older_fences_back", "older_claims_slowly"])
def make_race(request: pytest.FixtureRequest) -> Iterator[Callable[[str], Race]]:
    """`make_race(bootstrap)`: a `Race` that goes one of its ways."""
    with contextlib.ExitStack() as stack:

        def make(bootstrap: str) -> Race:
            race = stack.enter_context(contextlib.closing(Race(bootstrap)))
            getattr(race, request.param)()
            return race

        yield make


class User:
    """A person at a terminal in `folder`; all that Tidegate keeps of them lies below it, the fetched Kafka apart."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / "data" / "tidegate"
        self._mark = uuid4().hex
        given = {name: value for name, value in os.environ.items() if not name.startswith("TIDEGATE_KAFKA")}
        self.environment = {
            **given,
            MARK: self._mark,
            "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}",
            "XDG_DATA_HOME": str(folder / "data"),
            "XDG_STATE_HOME": str(folder / "state"),
            "COLUMNS": "200",
        }
        # It would move the fetched Kafka too, which is then fetched again.
        self.environment.pop("TIDEGATE_HOME", None)

    def run(self, *arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
        """`tidegate ARGUMENTS` to its end, with changes to the environment."""
        process = self.start(*arguments, **changes)
        out, err = process.communicate(timeout=COMMAND_S)
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def start(self, *arguments: str, **changes: str) -> subprocess.Popen[str]:
        """`tidegate ARGUMENTS` as a process that goes on."""
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "tidegate", *arguments],
            cwd=self.folder,
            env={**self.environment, **changes},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def until(self, what: str, process: subprocess.Popen[str], reached: Callable[[], bool]) -> None:
        """Wait for something that `process` brings about; its own end is a failure."""
        until_s = time.monotonic() + COMMAND_S
        while not reached():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(LOOK_AGAIN_S)
            assert process.returncode is None, f"ended before {what}: {process.communicate()}"
            assert time.monotonic() < until_s, f"never came: {what}"

    def until_results(self, process: subprocess.Popen[str], folder: Path, site: str, records: int) -> Running:
        """Wait until the pipeline that runs in `folder` has written so many records of results; where its Kafkas are.

        `folder` may hold a `*`.
        """

        def running() -> Running | None:
            return next(filter(None, map(read_running, folder.parent.glob(folder.name))), None)

        self.until("a running pipeline", process, lambda: running() is not None)
        found = running()
        assert found is not None
        with contextlib.closing(KafkaCluster("edge", found.edge)) as edge:
            topic = SiteTopics(site).results

            def written() -> int:
                try:
                    return sum(edge.end_offsets([topic]).values())
                except BrokerError:
                    return 0  # The topic is not there yet.

            self.until("results", process, lambda: written() >= records)
        return found

    def running(self) -> list[psutil.Process]:
        """Every process that this user's commands started and that is still there."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == self._mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue  # It ended meanwhile, or is somebody else's.
        return found

    def left_running(self) -> list[str]:
        """What is still there after the time that everything has to end."""
        _, alive = psutil.wait_procs(self.running(), timeout=LEAVE_S)
        return [" ".join(process.cmdline()[:6]) for process in alive if process.is_running()]

    def end(self) -> None:
        """Kill whatever is left."""
        for process in self.running():
            process.send_signal(signal.SIGKILL)


@pytest.fixture(scope="module")
def make_user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], User]]:
    """`make_user()`: a person with an empty folder."""
    people: list[User] = []

    def make() -> User:
        people.append(User(tmp_path_factory.mktemp("user")))
        return people[-1]

    yield make
    for person in people:
        person.end()


@pytest.fixture
def user(make_user: Callable[[], User]) -> User:
    """A person with an empty folder."""
    return make_user()


def write_model(path: Path, side: int | None = 224, channels: int = 3, *, flat: bool = False) -> Path:
    """A classifier that answers with the strongest colour channel: float32 NCHW, of any size where `side` is None.

    `flat`: it takes [n, channels], which no image is.
    """
    classes = len(LABELS)
    shape = ["n", channels, *([] if flat else [side or "height", side or "width"])]
    means = [] if flat else [helper.make_node("GlobalAveragePool", ["images"], ["means"])]
    weights = np.eye(channels, classes, dtype=np.float32) * 10
    graph = helper.make_graph(
        [
            *means,
            helper.make_node("Flatten", ["images" if flat else "means"], ["flat"]),
            helper.make_node("MatMul", ["flat", "weights"], ["scores"]),
        ],
        "strongest_colour",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", classes])],
        [numpy_helper.from_array(weights, "weights")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())
    return path


def write_images(folder: Path, count: int) -> list[str]:
    """Files as people have them: JPEG and PNG, colour and grey, of several sizes. The label of each, "" for grey."""
    folder.mkdir(parents=True, exist_ok=True)
    labels = []
    for number in range(count):
        height, width = 40 + 8 * (number % 3), 64
        suffix = (".jpg", ".png")[number % 2]
        if number % 4 == 3:
            image = np.full((height, width), 40 + number % 200, np.uint8)
            labels.append("")
        else:
            label = number % len(LABELS)
            image = np.full((height, width, 3), 30, np.uint8)
            image[..., 2 - label] = 220  # OpenCV writes blue, green, red.
            labels.append(LABELS[label])
        assert cv2.imwrite(str(folder / f"frame-{number:04}{suffix}"), image)
    return labels


@pytest.fixture(scope="session")
def make_model():
    """`make_model(path, side=224, channels=3)`."""
    return write_model


@pytest.fixture(scope="session")
def make_images():
    """`make_images(folder, count)`: the label of each, in the order of the names."""
    return write_images
