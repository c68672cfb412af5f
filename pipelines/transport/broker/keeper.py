"""`python -P -m pipelines.transport.broker.keeper LAUNCH`: holds a broker for as long as its parent lives.

The parent holds the other end of the keeper's standard input. When that closes, by `kill -9` of the parent as well,
the keeper ends the broker; when the keeper itself is killed, the kernel kills the broker (Linux). A line
`stop SECONDS` ends the broker with that grace. On standard output it says `pid N`, `ready` and `exit CODE`.
"""

import os
import selectors
import signal
import subprocess
import sys
from types import FrameType

import msgspec

from pipelines.transport.broker.process import CHUNK_BYTES, DEFAULT_GRACE_S, READY, Launch, end, fence, output_of, spawn

STDIN = 0


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _grace_of(order: bytes) -> float:
    """Seconds named by `stop SECONDS`; an empty read is the parent's end."""
    words = order.split()
    return float(words[1]) if len(words) > 1 else DEFAULT_GRACE_S


def _watch(process: subprocess.Popen[bytes]) -> float:
    """Wait until the broker ended or shall end; the grace in seconds to end it with."""
    console = output_of(process)
    seen, said = b"", False
    with selectors.DefaultSelector() as selector:
        selector.register(STDIN, selectors.EVENT_READ)
        selector.register(console, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                chunk = os.read(key.fd, CHUNK_BYTES)
                if key.fd == STDIN:
                    return _grace_of(chunk)
                if not chunk:
                    return 0.0
                seen = (seen + chunk)[-CHUNK_BYTES:]
                if not said and READY in seen:
                    said = True
                    _say("ready")


def _asked_to_end(_signal: int, _frame: FrameType | None) -> None:
    raise SystemExit(0)


def main() -> None:
    """Run the broker named by the first argument until it ends or the parent goes."""
    launch = msgspec.json.decode(sys.argv[1], type=Launch)
    signal.signal(signal.SIGTERM, _asked_to_end)
    fence(launch, with_parent=True)
    process = spawn(launch, with_parent=True)
    grace_s = DEFAULT_GRACE_S
    try:
        _say(f"pid {process.pid}")
        grace_s = _watch(process)
    finally:
        code = end(process, grace_s)
    _say(f"exit {code}")


if __name__ == "__main__":
    main()
