"""Brokers that live and die with this process, by `kill -9` of it as well: each has a keeper (keeper.py)."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from pipelines.errors import BrokerError
from pipelines.transport.broker.install import install
from pipelines.transport.broker.node import Node, port_was_taken, prepare, why_it_died
from pipelines.transport.broker.process import DEFAULT_GRACE_S, output_of, read_until
from pipelines.transport.broker.settings import SECURITY_DIR

# A start takes 2 s; recovery of a large log after `kill -9` on a slow disk takes longer.
START_TIMEOUT_S = 120.0
KEEPER_TIMEOUT_S = 10.0
START_TRIES = 3


class Broker:
    """A running embedded broker that this process owns. Made by `start_owned`; a context manager that stops it."""

    def __init__(self, data_dir: Path, *, name: str, secured: bool = False) -> None:
        self.name = name
        self.secured = secured
        self.data_dir = data_dir.resolve()
        self._keeper: subprocess.Popen[bytes] | None = None
        self._node: Node | None = None
        self._pid = 0

    @property
    def bootstrap(self) -> str:
        """The address for clients, "127.0.0.1:port"; the same after a restart."""
        return self._prepared.bootstrap

    @property
    def scram_bootstrap(self) -> str | None:
        """Of a secured broker: the address for clients with user and password; `bootstrap` takes certificates."""
        return self._prepared.scram_bootstrap

    @property
    def security_dir(self) -> Path:
        """Of a secured broker: its authority (`ca.crt`, `ca.key`) and its operator (`admin.crt`, `admin.key`)."""
        return self.data_dir / SECURITY_DIR

    @property
    def log_path(self) -> Path:
        """The broker's log."""
        return self._prepared.log_path

    @property
    def pid(self) -> int:
        """Process id of the JVM."""
        return self._pid

    @property
    def running(self) -> bool:
        """Whether the broker (its keeper, which ends with it) is alive."""
        return self._keeper is not None and self._keeper.poll() is None

    @property
    def _prepared(self) -> Node:
        if self._node is None:
            raise BrokerError(f"the broker '{self.name}' was never started", remedy="use start_owned")
        return self._node

    def _launch(self, *, keep_port: bool) -> None:
        """Start the keeper and its JVM; `_await_ready` waits for it."""
        self._node = node = prepare(self.data_dir, install(), keep_port=keep_port, secured=self.secured)
        order = msgspec.json.encode(node.launch()).decode()
        try:
            with (node.log_path.parent / "console.log").open("wb") as console:
                self._keeper = subprocess.Popen(
                    [sys.executable, "-P", "-m", "pipelines.transport.broker.keeper", order],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=console,
                    start_new_session=True,  # Ctrl-C in a terminal is for the owner, who stops the broker last
                    pass_fds=(node.lock,),
                )
        finally:
            os.close(node.lock)

    def _await_ready(self) -> None:
        """Wait for the started line; a port that another process took in between is chosen anew, a few times."""
        for tries_left in reversed(range(START_TRIES)):
            if self._keeper is None:
                raise BrokerError(f"the broker '{self.name}' was never started", remedy="use start_owned")
            try:
                said = read_until(output_of(self._keeper), b"ready\n", START_TIMEOUT_S)
            except TimeoutError:
                raise BrokerError(
                    f"Kafka was not ready after {START_TIMEOUT_S:.0f} s", remedy=f"see {self.log_path}"
                ) from None
            if b"ready\n" in said:
                self._pid = int(said.split()[1])
                return
            self._collect(KEEPER_TIMEOUT_S)
            if not tries_left or not port_was_taken(self._prepared):
                break
            self._launch(keep_port=False)
        raise why_it_died(self._prepared)

    def stop(self, grace_s: float = DEFAULT_GRACE_S) -> None:
        """SIGTERM, then SIGKILL after `grace_s`. A broker that is not running is left so."""
        if self._keeper is None or self._keeper.stdin is None:
            return
        with contextlib.suppress(BrokenPipeError):  # it ended by itself, which is what was wanted
            self._keeper.stdin.write(f"stop {grace_s}\n".encode())
            self._keeper.stdin.flush()
        self._collect(grace_s + KEEPER_TIMEOUT_S)

    def _collect(self, timeout_s: float) -> None:
        """Wait for the keeper's end and close its pipes. One that hangs is killed, and the kernel kills its broker."""
        keeper, self._keeper = self._keeper, None
        if keeper is None:
            return
        try:
            read_until(output_of(keeper), None, timeout_s)
        except TimeoutError:
            keeper.kill()
        with contextlib.suppress(BrokenPipeError), keeper:  # closes the pipes and waits
            pass

    def start_again(self) -> None:
        """Start on the same data and port, after `stop` or after the broker was killed.

        Raises `BrokerError` where it still runs or its port was taken.
        """
        if self._keeper is not None:
            try:
                read_until(output_of(self._keeper), None, KEEPER_TIMEOUT_S)
            except TimeoutError:
                raise BrokerError(f"the broker '{self.name}' still runs", remedy="stop it first") from None
            self._collect(KEEPER_TIMEOUT_S)
        _start([self], keep_port=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def _start(brokers: Sequence[Broker], *, keep_port: bool) -> None:
    """Start all at once, then wait for each; where one fails, none stays."""
    try:
        for broker in brokers:
            broker._launch(keep_port=keep_port)
        for broker in brokers:
            broker._await_ready()
    except BaseException:
        for broker in brokers:
            broker.stop(grace_s=0.0)
        raise


def start_many_owned(wanted: Sequence[tuple[Path, str]]) -> list[Broker]:
    """Start several brokers at once, each given as (data directory, name). See `start_owned`."""
    brokers = [Broker(data_dir, name=name) for data_dir, name in wanted]
    _start(brokers, keep_port=False)
    return brokers


def start_owned(data_dir: Path, *, name: str, secured: bool = False) -> Broker:
    """Start a broker on `data_dir` (made where missing) that ends with this process; ready when this returns.

    `secured`: with TLS, logins and permissions (docs/security.md). Raises `BrokerError`: no Java, no jars and no
    network, the directory in use, or Kafka's own last words.
    """
    broker = Broker(data_dir, name=name, secured=secured)
    _start([broker], keep_port=False)
    return broker
