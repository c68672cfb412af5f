"""Only checked jars are used, a good set needs no network, and what goes wrong is one line."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.errors import BrokerError
from pipelines.transport.broker import jars
from pipelines.transport.broker.jars import Pin

CONTENT = {"alpha-1.jar": b"alpha", "beta-2.jar": b"beta"}


def fetches(content: dict[str, bytes], asked: list[str]) -> Callable[[Path], Callable[[Pin], Path]]:
    def fetcher(scratch: Path) -> Callable[[Pin], Path]:
        def fetch(pin: Pin) -> Path:
            asked.append(pin.filename)
            path = scratch / pin.filename
            path.write_bytes(content[pin.filename])
            return path

        return fetch

    return fetcher


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """A pinned set of two jars, a home of its own and a repository that has both; the jars that were asked for."""
    rows = [
        f"{hashlib.sha256(CONTENT[f'{name}-{v}.jar']).hexdigest()}  org.x:{name}:{v}\n"
        for name, v in (("alpha", 1), ("beta", 2))
    ]
    pins = tmp_path / "kafka.sha256"
    pins.write_text("".join(rows))
    seen: list[str] = []
    monkeypatch.setattr(jars, "PINS", pins)
    monkeypatch.setenv("TIDEGATE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(jars, "_fetcher", fetches(CONTENT, seen))
    return seen


def test_the_list_pins_kafka_with_its_own_clients_and_a_logger() -> None:
    pins = jars.pins()
    versions = {pin.artifact: pin.version for pin in pins}
    assert versions["kafka_2.13"] == versions["kafka-clients"] == jars.KAFKA_VERSION
    assert "log4j-slf4j-impl" in versions
    assert all(len(pin.sha256) == 64 for pin in pins)
    assert len({pin.filename for pin in pins}) == len(pins)


def test_fetches_once_then_never_again(asked: list[str]) -> None:
    told: list[str] = []
    first = jars.ensure_jars(told.append)
    assert [path.read_bytes() for path in first] == [b"alpha", b"beta"]
    assert any("2 jars" in line for line in told)
    assert jars.ensure_jars() == first
    assert sorted(asked) == sorted(CONTENT)


def test_a_good_set_is_known_without_reading_it_again(asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    jars.ensure_jars()

    def read(path: Path) -> str:
        raise AssertionError(f"{path} was read again")

    monkeypatch.setattr(jars, "sha256_of", read)
    assert jars.missing_jars(jars.jar_folder()) == []


def test_a_jar_changed_on_disk_is_fetched_again(asked: list[str]) -> None:
    changed = jars.ensure_jars()[0]
    changed.write_bytes(b"other")
    os.utime(changed, ns=(1, 1))
    asked.clear()
    assert jars.ensure_jars()[0].read_bytes() == b"alpha"
    assert asked == ["alpha-1.jar"]


def test_a_fetched_jar_with_another_sum_is_an_error_and_not_used(
    asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jars, "_fetcher", fetches({**CONTENT, "beta-2.jar": b"forged"}, asked))
    with pytest.raises(BrokerError, match=r"beta-2\.jar as fetched does not match its SHA-256"):
        jars.ensure_jars()
    assert [path.name for path in jars.jar_folder().rglob("*.jar")] == ["alpha-1.jar"]


def test_no_network_at_first_use_is_one_line(asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fetcher(_: Path) -> Callable[[Pin], Path]:
        def fetch(_: Pin) -> Path:
            raise ConnectionError("Max retries exceeded with url:\nand much more")

        return fetch

    monkeypatch.setattr(jars, "_fetcher", fetcher)
    with pytest.raises(BrokerError) as caught:
        jars.ensure_jars()
    assert "could not be fetched (ConnectionError): connect once to the network" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_scratch_of_a_killed_process_is_removed(tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    (tmp_path / "scratch" / "left.jar").write_bytes(b"half")
    with jars.exclusive(tmp_path) as scratch:
        assert list(scratch.iterdir()) == []
    assert not (tmp_path / "scratch").exists()
