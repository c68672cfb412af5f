"""`python -m pipelines.observe.probe`: asks `/healthz` of the worker in this container. The images' HEALTHCHECK.

Exit 0: it makes progress; 1: it does not, or does not answer. Prints the line that the worker says. Nothing but the
standard library is imported: the check runs every few seconds (55 ms, most of it the interpreter's own start).
"""

import os
import socket
import sys

VARIABLE = "TIDEGATE_METRICS"
DEFAULT = "127.0.0.1:9464"
TIMEOUT_S = 4.0
"""Less than the images' health check allows."""
ANSWER_BYTES_MOST = 4_096

_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "[::]": "::1", "": "127.0.0.1"}
"""What is listened on, and where one reaches it."""


def probe(address: str) -> tuple[bool, str]:
    """Whether the worker that serves at `HOST:PORT` makes progress, and its line."""
    host, _, port = address.rpartition(":")
    answer = b""
    try:
        with socket.create_connection((_EVERYWHERE.get(host, host.strip("[]")), int(port)), TIMEOUT_S) as connection:
            connection.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
            while len(answer) < ANSWER_BYTES_MOST and (part := connection.recv(ANSWER_BYTES_MOST)):
                answer += part
    except (OSError, ValueError, OverflowError) as error:
        return False, f"no answer from {address}: {error}"
    head, _, body = answer.partition(b"\r\n\r\n")
    return head.split(b" ", 2)[1:2] == [b"200"], body.decode("utf-8", "replace").strip()


def main() -> int:
    """The exit code."""
    well, line = probe(os.environ.get(VARIABLE) or DEFAULT)
    sys.stdout.write(line + "\n")
    return 0 if well else 1


if __name__ == "__main__":
    raise SystemExit(main())
