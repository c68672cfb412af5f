import msgspec
import pytest

from schemas import wire
from schemas.answers import Answer, AnswerBatch, AnswerKind
from schemas.dead_letters import RETRIED, Decided, Disposition
from schemas.errors import ForeignRecord
from schemas.headers import Origin
from schemas.items import ItemId
from schemas.ledger import Mark, MarkBatch, Outcome
from schemas.positions import ForwardPosition, StreamPosition
from schemas.results import Result, ResultBatch
from scripts.publish_schemas import FOLDER, documents

MARKS = MarkBatch(
    1, "site-1", [Mark("cam-00", 7, 0, 9, Outcome.SHED, "retention"), Mark("cam-00", 7, 10, 10, Outcome.GATED)]
)
RESULT = Result("cam-00", 7, 3, 10, 20, Outcome.ANSWERED_CLOUD, "4", 0.5, "m@1", "unsure", "9", 0.25)
ANSWER = Answer("cam-00", 7, 3, Origin(1, 2, 30), AnswerKind.ANSWERED, "4", 0.5, "m@1")
GOLDEN = [
    (
        wire.decode_marks,
        MARKS,
        b'{"version":1,"site":"site-1","marks":[{"stream":"cam-00","epoch":7,"first_seq":0,"last_seq":9,"outcome":"shed",'
        b'"reason":"retention"},{"stream":"cam-00","epoch":7,"first_seq":10,"last_seq":10,"outcome":"gated"}]}',
    ),
    (
        wire.decode_results,
        ResultBatch(1, "site-1", [RESULT]),
        b'{"version":1,"site":"site-1","results":[{"stream":"cam-00","epoch":7,"seq":3,"capture_us":10,"settled_us":20,'
        b'"outcome":"answered_cloud","label":"4","confidence":0.5,"model":"m@1","reason":"unsure","edge_label":"9",'
        b'"edge_confidence":0.25}]}',
    ),
    (
        wire.decode_answers,
        AnswerBatch(1, "site-1", [ANSWER]),
        b'{"version":1,"site":"site-1","answers":[{"stream":"cam-00","epoch":7,"seq":3,"origin":[1,2,30],'
        b'"kind":"answered","label":"4","confidence":0.5,"model":"m@1"}]}',
    ),
    (wire.decode_stream_position, StreamPosition(7, 4, 3), b'{"epoch":7,"next_seq":4,"source_position":3}'),
    (
        wire.decode_forward_position,
        ForwardPosition(5, 4, 300, 1),
        b'{"next_offset":5,"records":4,"bytes":300,"expired":1,"foreign":0}',
    ),
    (
        wire.decode_disposition,
        Disposition(1, RETRIED, [Decided(4, ItemId("retry/cam-00", 7, 3)), Decided(5)]),
        b'{"version":1,"fate":"retried","letters":[{"offset":4,"item":["retry/cam-00",7,3]},{"offset":5}]}',
    ),
]


@pytest.mark.parametrize(
    ("decode", "value", "raw"), GOLDEN, ids=lambda part: getattr(part, "kind", None) and part.kind.__name__
)
def test_golden_bytes_both_ways(decode, value, raw):
    assert wire.encode(value) == raw
    assert decode(raw) == value


@pytest.mark.parametrize("raw", [None, b"", b"\xff", b"[]", b'{"version":1}', b'{"version":"1","site":1}'], ids=str)
@pytest.mark.parametrize("decode", [golden[0] for golden in GOLDEN], ids=lambda decode: decode.kind.__name__)
def test_what_is_not_ours_is_foreign(decode, raw):
    with pytest.raises(ForeignRecord, match=f"not a {decode.kind.__name__}"):
        decode(raw)


def test_fields_of_a_later_version_are_passed_over():
    later = msgspec.json.decode(wire.encode(MARKS)) | {"later": 1}
    assert wire.decode_marks(msgspec.json.encode(later)) == MARKS


def test_the_published_schemas_are_up_to_date():
    published = {file.name: file.read_text("utf-8") for file in FOLDER.glob("*.json")}
    assert published == documents(), "run `make schemas`"
