"""Dead letters: which wait, which are meant, and what a second chance makes of one.

The account
- An item that was dead-lettered has its one mark for ever. A retry therefore captures the payload as a new item, in a
  stream that only retries number (`retry_stream`), with the letter's place as its source position.
- What was decided about a letter is a record behind it in its own partition, written in the transaction that carries
  it out. A letter waits until its partition, read to the end, has such a record: never retried twice, nor lost.
"""

import re
from collections import Counter
from collections.abc import Iterable

import msgspec

from pipelines.errors import ConfigError
from schemas.dead_letters import RETRIED, Disposition
from schemas.headers import VERSION, Extra, Header
from schemas.items import ItemId
from schemas.topics import Tier

LetterId = tuple[int, int]
"""Partition and offset in the tier's dead-letter topic."""

WAITING = "waiting"

LETTERS_MOST = 200_000
"""Held at once, some 0.5 kB each; their payloads are not."""

RETRY = "retry/"
_ID = re.compile(r"([0-9]{1,9})@([0-9]{1,18})")

SETTLED_AT_ITS_SITE = (
    "its site has settled the item, and a second answer would change nothing: once the cause is mended, save it with "
    "`show --out` and give it to that site's source"
)
NO_ITEM = "it holds no item of ours"
LATER_VERSION = "a later version of Tidegate wrote it: update this one"
NOT_ENCODED = (
    "its frame could not be read or was too large when it was captured: mend it (`show --out` saves what was kept) and "
    "give it to the source as a new one"
)
SEVERAL = "it is several items in one record, which this version cannot process"


class Letter(msgspec.Struct, frozen=True):
    """A dead letter without its payload."""

    tier: Tier
    partition: int
    offset: int
    at_us: int
    """When it was written here; microseconds since the Unix epoch."""
    reason: str
    came_from: str
    """`topic[partition]@offset`, or the file or stream of a frame that could not travel."""
    content_type: str
    size_bytes: int
    """Of the payload."""
    stream: str = ""
    epoch: int = 0
    first_seq: int = 0
    count: int = 0
    """Items; 0 where it is no record of ours, and the three before mean nothing."""
    hindrance: str = ""
    """Why it cannot be retried; "" where it can."""
    fate: str = ""
    """What was decided about it; "" while it waits."""
    item: ItemId | None = None
    """What it was retried as."""

    @property
    def key(self) -> LetterId:
        """Names it within its tier."""
        return self.partition, self.offset

    @property
    def id(self) -> str:
        """The same for people."""
        return f"{self.partition}@{self.offset}"

    @property
    def state(self) -> str:
        """`waiting`, or what was decided."""
        return self.fate or WAITING

    @property
    def seqs(self) -> str:
        """Its seqs as people write them; "" where it has none."""
        last = self.first_seq + self.count - 1
        return f"{self.first_seq}-{last}" if self.count > 1 else str(self.first_seq) if self.count else ""


def parse_id(text: str) -> LetterId | None:
    """Read `partition@offset`; None for anything else."""
    match = _ID.fullmatch(text)
    return (int(match[1]), int(match[2])) if match else None


class Wanted(msgspec.Struct, frozen=True):
    """Which letters are meant. What is empty or None excludes nothing. Times are microseconds since the Unix epoch."""

    ids: frozenset[LetterId] = frozenset()
    reasons: frozenset[str] = frozenset()
    streams: frozenset[str] = frozenset()
    since_us: int | None = None
    until_us: int | None = None
    decided: bool = False
    """Also those that no longer wait."""

    @property
    def filters(self) -> bool:
        """Whether anything is excluded."""
        return bool(self.ids or self.reasons or self.streams) or (self.since_us, self.until_us) != (None, None)

    def __contains__(self, letter: Letter) -> bool:
        return (
            (not self.ids or letter.key in self.ids)
            and (not self.reasons or letter.reason in self.reasons)
            and (not self.streams or (letter.count > 0 and letter.stream in self.streams))
            and (self.since_us is None or letter.at_us >= self.since_us)
            and (self.until_us is None or letter.at_us <= self.until_us)
        )


class DeadLetters:
    """Takes in one tier's topic, in the order of each partition, and holds the letters that are meant."""

    def __init__(self, wanted: Wanted, most: int = LETTERS_MOST) -> None:
        self._wanted = wanted
        self._most = most
        self._held: dict[LetterId, Letter] = {}
        self.reasons: set[str] = set()
        """All that were seen, also of letters that are not meant."""

    def add(self, letter: Letter) -> None:
        """A letter. Raises `ConfigError` where too many are meant."""
        self.reasons.add(letter.reason)
        if letter not in self._wanted:
            return
        if len(self._held) >= self._most:
            raise ConfigError(
                f"more than {self._most:,} dead letters are meant",
                remedy="take fewer at a time: --since, --until, --reason, --stream",
            )
        self._held[letter.key] = letter

    def decide(self, partition: int, disposition: Disposition) -> None:
        """What was decided about letters before it in `partition`."""
        for decided in disposition.letters:
            key = partition, decided.offset
            letter = self._held.get(key)
            if letter is None:
                continue
            if self._wanted.decided:
                self._held[key] = msgspec.structs.replace(letter, fate=disposition.fate, item=decided.item)
            else:
                del self._held[key]

    def letters(self) -> list[Letter]:
        """Those that are meant, the oldest first."""
        return sorted(self._held.values(), key=lambda letter: (letter.at_us, letter.partition, letter.offset))


def to_be_decided(letters: Iterable[Letter], fate: str) -> tuple[list[Letter], list[Letter], Counter[str]]:
    """Those that `fate` is for, those that it cannot be for, and how many are decided, by what was done."""
    chosen: list[Letter] = []
    hindered: list[Letter] = []
    before: Counter[str] = Counter()
    for letter in letters:
        if letter.fate:
            before[f"{letter.fate} before"] += 1
        elif letter.hindrance and fate == RETRIED:
            hindered.append(letter)
        else:
            chosen.append(letter)
    return chosen, hindered, before


def hindrance(tier: Tier, header: Header | None, *, later_version: bool) -> str:
    """Why a letter with this `tg` header (None: without one that can be read) cannot be retried; "" where it can."""
    if tier is Tier.CLOUD:
        return SETTLED_AT_ITS_SITE
    if header is None:
        return LATER_VERSION if later_version else NO_ITEM
    if not header.codec:
        return NOT_ENCODED
    return SEVERAL if header.count > 1 else ""


def retry_stream(stream: str) -> str:
    """The stream that retries of `stream` are captured in; one that failed again stays in it."""
    return stream if stream.startswith(RETRY) else RETRY + stream


def place(topic: str, key: LetterId) -> str:
    """The source position of a retried letter."""
    return f"{topic}[{key[0]}]@{key[1]}"


def refuse_producers(streams: Iterable[tuple[str, int | str | None]], topic: str) -> None:
    """Raise `ConfigError` where a stored source position is no `place`: a producer numbers that stream."""
    for stream, position in streams:
        if not isinstance(position, str) or not position.startswith(f"{topic}["):
            raise ConfigError(
                f"stream '{stream}', in which retries would be captured, is one of a producer",
                remedy="call the source's stream otherwise: names that begin with `retry/` are for retries",
            )


def captured_anew(header: Header, item: ItemId, source_position: str, deadline_us: int) -> Header:
    """The header of a retried payload: as it was captured, but for its identity, its deadline and its way so far."""
    return msgspec.structs.replace(
        header,
        version=VERSION,
        stream=item.stream,
        epoch=item.epoch,
        first_seq=item.seq,
        deadline_us=deadline_us,
        source_position=source_position,
        hops=0,
        model="",
        extra=Extra(),
    )
