"""`/metrics`, `/healthz` and `/livez` of a process, by one thread of its own.

`TIDEGATE_METRICS=HOST:PORT` says where, and exactly there: so do containers. Without it `metrics.listen` of the
pipeline file does; several workers on one machine share the file, so whoever finds the port taken takes the next one,
and leaves a file for Prometheus (`file_sd_configs`) in the folder `metrics` of the pipeline. Without either nothing is
served. `TIDEGATE_METRICS=unix:PATH` is a Unix socket, for workers whose supervisor answers for them.
"""

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from errno import EADDRINUSE
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from socket import AF_INET, AF_INET6, AF_UNIX
from socketserver import TCPServer
from typing import Protocol

import msgspec
import structlog
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from pipelines.config.home import pipeline_dir
from pipelines.config.pipeline import Pipeline
from pipelines.config.units import parse_listen
from pipelines.errors import ConfigError
from pipelines.observe.instruments import Instruments
from pipelines.observe.probe import VARIABLE
from pipelines.runtime.process import PARENT_PIPE

log = structlog.get_logger("tidegate.metrics")

PORTS_MOST = 64
"""Tried from the one in the file on: as many workers of one file on one machine."""

TURN_S = 0.2
"""How late the thread sees that it is to end."""

REQUEST_S = 2.0
"""For one request: the next waits for it."""


UNIX = "unix:"
"""Before the path of a socket."""


class Told(Protocol):
    """Who answers: one worker, or a supervisor for all of its."""

    def exposed(self) -> CollectorRegistry:
        """What `/metrics` shows, brought up to date."""
        ...

    def why_not(self) -> str:
        """Why it makes no progress; "" where it does."""
        ...

    def why_hung(self) -> str:
        """Why it counts as hung; "" while it does not."""
        ...

    @property
    def doing(self) -> str:
        """What is said where all is well."""
        ...


class Address(msgspec.Struct, frozen=True):
    """Where to listen."""

    host: str
    port: int
    exact: bool
    """This port, or none."""
    said_by: str
    """For messages."""
    path: str = ""
    """Of a Unix socket, in place of host and port."""


def address_of(listen: str | None, given: str | None = None) -> Address | None:
    """Where this process is to listen: `given` on the command line, the environment, the file's `listen`.

    Raises `ConfigError`.
    """
    for text, said_by, exact in (
        (given, "--listen", True),
        # Workers of one supervisor have one environment.
        (os.environ.get(VARIABLE), VARIABLE, PARENT_PIPE not in os.environ),
        (listen, "`metrics.listen`", False),
    ):
        if text and text.startswith(UNIX):
            return Address("", 0, True, said_by, text.removeprefix(UNIX))
        if text:
            try:
                return Address(*parse_listen(text), exact, said_by)
            except ValueError as error:
                raise ConfigError(f"{said_by}: {error}") from error
    return None


@contextmanager
def instrumented(pipeline: Pipeline, kind: str, site: str, instance: str | None) -> Iterator[Instruments]:
    """The instruments of a worker, served as the pipeline has it until the end of the block. Raises `ConfigError`."""
    instruments = Instruments(kind, site)
    targets = pipeline_dir(pipeline.name) / "metrics" / f"{instance or kind}.json"
    with served(instruments, address_of(pipeline.metrics.listen), targets):
        yield instruments


@contextmanager
def served(
    told: Told, address: Address | None, targets: Path | None = None, labels: Mapping[str, str] | None = None
) -> Iterator[str]:
    """Serve until the end of the block; the address, "" where nothing is served. Raises `ConfigError`.

    `targets` is the file for Prometheus, written where the port was free to choose, with `labels`; its name as `worker`
    if they are not given.
    """
    if address is None:
        yield ""
        return
    server = _listening(told, address)
    host = f"[{address.host}]" if ":" in address.host else address.host
    where = f"{UNIX}{address.path}" if address.path else f"{host}:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, args=(TURN_S,), daemon=True, name="metrics").start()
    log.info("serving_metrics", at=where)
    written = None
    if not address.exact and targets is not None:
        written = _write_targets(targets, where, {"worker": targets.stem} if labels is None else labels)
    try:
        yield where
    finally:
        server.shutdown()
        server.server_close()
        if written is not None:
            written.unlink(missing_ok=True)


class _Server(HTTPServer):
    """One request after the other."""

    def __init__(self, address: Address, port: int, told: Told) -> None:
        self.told = told
        if address.path:
            self.address_family = AF_UNIX
            Path(address.path).unlink(missing_ok=True)  # A former life's.
            # Its stubs know addresses of the internet only.
            super().__init__(address.path, _Handler)  # type: ignore[arg-type]
        else:
            self.address_family = AF_INET6 if ":" in address.host else AF_INET
            super().__init__((address.host, port), _Handler)

    def server_bind(self) -> None:
        """Not as `HTTPServer` does: it asks the name service for our own name, which may take long."""
        TCPServer.server_bind(self)

    def handle_error(self, request: object, client_address: object) -> None:
        """Who hangs up early is no error of ours."""


def _listening(told: Told, address: Address) -> _Server:
    ports = range(address.port, min(address.port + (1 if address.exact else PORTS_MOST), 65_536))
    for port in ports:
        try:
            return _Server(address, port, told)
        except OSError as error:
            if error.errno == EADDRINUSE and port != ports[-1]:
                continue
            where = address.path or f"{address.host}:{address.port}" + (f" to {port}" if port > address.port else "")
            raise ConfigError(
                f"{address.said_by}: cannot listen on {where} ({error.strerror or error})",
                remedy="give another address, or end what listens there",
            ) from error
    raise AssertionError("a port was tried")


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = REQUEST_S
    server_version = "tidegate"
    sys_version = ""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/metrics":
            encode, content_type = choose_encoder(self.headers.get("Accept", ""))
            self._answer(200, content_type, encode(self.server.told.exposed()))
        elif path == "/healthz":
            self._say(self.server.told.why_not())
        elif path == "/livez":
            self._say(self.server.told.why_hung())
        else:
            self._answer(404, "text/plain; charset=utf-8", b"/metrics, /healthz and /livez are here\n")

    def _say(self, problem: str) -> None:
        line = problem or self.server.told.doing
        self._answer(503 if problem else 200, "text/plain; charset=utf-8", f"{line}\n".encode())

    def _answer(self, status: int, content_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: a scrape a second would bury what matters."""


def _write_targets(path: Path, where: str, labels: Mapping[str, str]) -> Path | None:
    """What `file_sd_configs` reads. It is only a help: where it cannot be written, the log says so."""
    found = [{"targets": [where], "labels": labels}]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(msgspec.json.encode(found))
    except OSError as error:
        log.warning("targets_not_written", file=str(path), error=error.strerror)
        return None
    return path
