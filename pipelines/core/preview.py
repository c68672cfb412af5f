"""Text and bytes that anybody may have written, made safe for a terminal: no escape sequence, nothing raw.

Pure. What is not printable (control characters, marks that turn the direction of writing) is escaped as Python does.
"""

TEXT_MOST = 400
"""Characters shown of a payload that is text."""
BYTES_MOST = 64
"""Bytes shown of any other."""
LINE_BYTES = 16


def printable(text: str) -> str:
    """`text` on one line, with everything that is not printable escaped."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def printable_bytes(value: bytes, most: int = TEXT_MOST) -> str:
    """The beginning of `value` on one line: as text if it is text, else in hex."""
    text = _text(value, most)
    if text is not None:
        return printable(text) + _rest(len(value), len(text.encode()), "bytes")
    shown = value[:BYTES_MOST]
    return shown.hex(" ") + _rest(len(value), len(shown), "bytes")


def preview(payload: bytes) -> list[str]:
    """Lines that show the beginning of a payload: its text, or 16 bytes a line in hex with what is readable of them."""
    text = _text(payload, TEXT_MOST)
    if text is not None:
        lines = [printable(line) for line in text.split("\n")]
        shown = len(text.encode())
    else:
        head = payload[:BYTES_MOST]
        lines = [_hex_line(head[at : at + LINE_BYTES]) for at in range(0, len(head), LINE_BYTES)]
        shown = len(head)
    return lines + [rest.strip() for rest in (_rest(len(payload), shown, "bytes"),) if rest]


def _text(value: bytes, most: int) -> str | None:
    """Its first characters, up to `most`; None where it is no text."""
    head = value[: 4 * most]
    try:
        text = head.decode()
    except UnicodeDecodeError as error:
        if len(head) == len(value) or error.start < len(head) - 3:
            return None
        text = head[: error.start].decode()  # A character was cut in two.
    text = text[:most]
    return text if all(one.isprintable() or one in "\t\r\n" for one in text) else None


def _hex_line(some: bytes) -> str:
    readable = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in some)
    return f"{some.hex(' '):<{3 * LINE_BYTES - 1}}  {readable}"


def _rest(size: int, shown: int, what: str) -> str:
    return f" ... and {size - shown:,} {what} more" if size > shown else ""
