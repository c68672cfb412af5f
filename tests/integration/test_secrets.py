"""No command repeats a secret: a password and a key's passphrase, from the environment and from files.

The commands really log in with them on a secured Kafka, or are refused; what they print or leave behind is searched.
"""

import datetime
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from cryptography.hazmat.primitives import serialization

from pipelines.transport import access
from pipelines.transport.broker import Broker, start_owned
from pipelines.transport.broker.settings import ADMIN_USER
from pipelines.transport.certificates import ensure_authority, write_private
from pipelines.transport.kafka import KafkaCluster

pytestmark = pytest.mark.kafka

SECRETS = {"password": "a-password-that-nobody-may-see", "key_password": "a-passphrase-that-nobody-may-see"}
WRONG = "-which-is-wrong"
"""Behind the right one, so that one search finds both."""

READING = ("status", "status --json", "top --count 1", "top --count 1 --json", "lag", "lag --json")
"""What is away within 2.5 s they say and end with 1: a busy machine is no failure of these tests."""
TOPICS = ("topics plan", "topics plan --json", "topics check", "topics check --json")

ONE_AFTER_THE_OTHER = """
import json, sys
from tidegate import main

commands, codes = json.loads(sys.argv[1]), {}
for command in commands:
    for stream in (sys.stdout, sys.stderr):
        print(f"$ {command}", file=stream, flush=True)
    sys.argv = ["tidegate", *command.split()]
    try:
        main()
    except SystemExit as ended:
        codes[command] = ended.code
    sys.stdout.flush()
json.dump(codes, open("codes.json", "w"))
"""
"""One process: to start one a command would take most of the time."""


class Login(NamedTuple):
    """The operator of a secured Kafka: by certificate, its key encrypted, and by password."""

    broker: Broker
    certificate: Path
    key: Path


@pytest.fixture(scope="module")
def login(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Login]:
    folder = tmp_path_factory.mktemp("secrets")
    with start_owned(folder / "kafka", name="secrets", secured=True) as broker:
        own, now = broker.security_dir, datetime.datetime.now(datetime.UTC)
        options = {
            "security.protocol": "ssl",
            "ssl.ca.location": str(own / "ca.crt"),
            "ssl.certificate.location": str(own / f"{ADMIN_USER}.crt"),
            "ssl.key.location": str(own / f"{ADMIN_USER}.key"),
        }
        with closing(KafkaCluster("kafka.cloud", broker.bootstrap, options)) as admin:
            access.set_password(admin, ADMIN_USER, SECRETS["password"])
        pair = ensure_authority(own, "", now).issue(ADMIN_USER, now)
        encrypted = serialization.load_pem_private_key(pair.key, None).private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(SECRETS["key_password"].encode()),
        )
        (folder / "own.crt").write_bytes(pair.certificate)
        write_private(folder / "own.key", encrypted)
        yield Login(broker, folder / "own.crt", folder / "own.key")


def holds_secret(text: str) -> bool:
    return any(secret in text for secret in SECRETS.values())


class Person(NamedTuple):
    """Somebody with a pipeline file that says where each secret is."""

    user: Any
    kafka: Path
    places: Mapping[str, Mapping[str, str]]

    def give(self, wrong: str = "") -> dict[str, str]:
        """Put the secrets where the file says; the environment that they are in."""
        environment = {"TIDEGATE_LOG": "debug"}
        for name, place in self.places.items():
            secret = SECRETS[name] + (WRONG if name == wrong else "")
            if "env" in place:
                environment[place["env"]] = secret
            else:
                write_private(Path(place["file"]), f"{secret}\n".encode())
        return environment

    def run(self, commands: Sequence[str], wrong: str = "") -> dict[str, int]:
        """How each command ends, once nothing of what they printed or left behind holds a secret."""
        done = subprocess.run(
            [sys.executable, "-c", ONE_AFTER_THE_OTHER, json.dumps(commands)],
            cwd=self.user.folder,
            env=self.user.environment | self.give(wrong),
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done
        assert done.stdout.count("\n$ ") == len(commands) - 1, "all were run"
        for stream in (done.stdout, done.stderr):
            assert not holds_secret(stream), stream
        assert "Traceback" not in done.stderr, done.stderr
        self.look_at_files()
        codes: dict[str, int] = json.loads((self.user.folder / "codes.json").read_text("utf-8"))
        return codes

    def look_at_files(self) -> None:
        """Of the user and of the Kafka: logs, and whatever else there is."""
        files = [path for folder in (self.user.folder, self.kafka) for path in folder.rglob("*") if path.is_file()]
        assert files
        assert [str(path) for path in files if holds_secret(path.read_bytes().decode("utf-8", "replace"))] == []


@pytest.fixture(params=["password in a file, passphrase in the environment", "the other way round"])
def person(
    request: Any, user: Any, login: Login, site: str, tmp_path: Path, make_images: Any, make_model: Any
) -> Person:
    """The edge's Kafka is logged in to by certificate and the cloud's, the same one, by password."""
    names = tuple(SECRETS) if "file" in request.param else tuple(reversed(SECRETS))
    places = {names[0]: {"file": str(tmp_path / "secret")}, names[1]: {"env": "THE_SECRET"}}
    make_images(user.folder / "images", 2)
    make_model(user.folder / "model.onnx")
    trust = {"ca": str(login.broker.security_dir / "ca.crt")}
    pair = {"certificate": str(login.certificate), "key": str(login.key), "key_password": places["key_password"]}
    content = {
        "name": site,
        "site": site,
        "source": {"path": "./images"},
        "partitions": 2,
        "edge": {"model": "./model.onnx"},
        "kafka": {
            "edge": {"bootstrap": login.broker.bootstrap, "tls": trust | pair},
            "cloud": {
                "bootstrap": login.broker.scram_bootstrap,
                "tls": trust,
                "sasl": {"username": ADMIN_USER, "password": places["password"]},
            },
        },
    }
    (user.folder / "pipeline.yaml").write_text(yaml.safe_dump(content), "utf-8")
    return Person(user, login.broker.data_dir, places)


def test_no_command_repeats_a_secret(person: Person, login: Login) -> None:
    assert person.run(["topics plan", "topics plan --json"]) == {"topics plan": 1, "topics plan --json": 1}
    codes = person.run(["topics apply", *TOPICS, "check", "doctor", "doctor --json", *READING])
    assert [codes[command] for command in ("topics apply", *TOPICS, "check")] == [0] * 6, "they did log in"
    assert {codes[command] for command in READING} <= {0, 1}

    codes = person.run([*TOPICS, "check", *READING], wrong="key_password")
    assert set(codes.values()) == {2}
    codes = person.run([*TOPICS[1:3], *READING[1:5], f"doctor --bootstrap {login.broker.bootstrap}"], wrong="password")
    assert {codes[command] for command in TOPICS[1:3]} == {2}, "they were refused"
    assert 0 not in {codes["status --json"], codes["lag"]}


def test_no_log_of_a_worker_does(person: Person) -> None:
    assert person.run(["topics apply"]) == {"topics apply": 0}
    working = person.user.start("uplink", **person.give())
    log = ""
    for line in working.stderr:
        log += line
        if "event=forwarding" in line:
            working.terminate()
    assert (working.wait(), "event=forwarding" in log) == (0, True), log
    assert not holds_secret(log + working.stdout.read())
    person.look_at_files()
