"""Forms with files in them (multipart/form-data), read as they arrive: no file is ever held whole."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from fastapi import Request
from python_multipart.exceptions import MultipartParseError as MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.exceptions import HTTPException

from services.gateway.legacy.shape import OldFailure, invalid
from services.gateway.settings import HttpSettings
from services.gateway.uploads import arriving

# An error ends the request while the sender may still be at it.
CLOSE = {"Connection": "close"}
_MAX_PARTS = 100
_MAX_HEADER_BYTES = 8192
_MAX_TEXT_BYTES = 4096
# Of a form: all but its files.
_MAX_BESIDE_BYTES = 1 << 20


@dataclass
class Part:
    """One field of a form; what is not read of `body` is lost with the next part.

    Attributes:
        name: of the field.
        filename: what the sender calls a file; None for a plain field.
        body: its content in pieces.
    """

    name: str
    filename: str | None
    body: AsyncIterator[bytes]

    async def text(self) -> str:
        """The content of a plain field.

        Raises:
            MultipartParseError: it is long, or no text.
        """
        data = b""
        async for piece in self.body:
            data += piece
            if len(data) > _MAX_TEXT_BYTES:
                raise MultipartParseError(f"{self.name}: more than {_MAX_TEXT_BYTES} bytes of text")
        try:
            return data.decode()
        except UnicodeDecodeError:
            raise MultipartParseError(f"{self.name}: no UTF-8 text") from None


@dataclass
class _Began:
    """A part's head."""

    disposition: bytes = b""


@dataclass
class _Events:
    """What the parser has seen and nobody has read yet: a head, pieces, None for a part's end."""

    queue: deque[_Began | bytes | None] = field(default_factory=deque)
    whole: bool = False
    _head: _Began = field(default_factory=_Began)
    _name: bytearray = field(default_factory=bytearray)
    _value: bytearray = field(default_factory=bytearray)
    _head_bytes: int = 0
    _parts: int = 0

    def on_part_begin(self) -> None:
        self._parts += 1
        if self._parts > _MAX_PARTS:
            raise MultipartParseError(f"more than {_MAX_PARTS} fields")
        self._head, self._head_bytes = _Began(), 0

    def on_header_begin(self) -> None:
        self._name.clear()
        self._value.clear()

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._take(self._name, data[start:end])

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._take(self._value, data[start:end])

    def _take(self, target: bytearray, data: bytes) -> None:
        self._head_bytes += len(data)
        if self._head_bytes > _MAX_HEADER_BYTES:
            raise MultipartParseError(f"a field with headers of more than {_MAX_HEADER_BYTES} bytes")
        target += data

    def on_header_end(self) -> None:
        if self._name.lower() == b"content-disposition":
            self._head.disposition = bytes(self._value)

    def on_headers_finished(self) -> None:
        self.queue.append(self._head)

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        self.queue.append(data[start:end])

    def on_part_end(self) -> None:
        self.queue.append(None)

    def on_end(self) -> None:
        self.whole = True


_CALLBACKS = (
    "on_part_begin", "on_part_data", "on_part_end", "on_header_begin", "on_header_field", "on_header_value",
    "on_header_end", "on_headers_finished", "on_end",
)  # fmt: skip


class Form:
    """The parts of a form, one after the other.

    Args:
        content_type: of the request.
        pieces: its body.

    Raises:
        NotAFormError: the content is of another type.
    """

    def __init__(self, content_type: str, pieces: AsyncIterator[bytes]) -> None:
        boundary = _parameter(content_type.encode("utf-8", "replace"), b"boundary")
        if not content_type.lower().startswith("multipart/form-data") or not boundary:
            raise NotAFormError
        self._pieces = pieces
        self._events = _Events()
        self._parser = MultipartParser(
            boundary.encode(),
            {name: getattr(self._events, name) for name in _CALLBACKS},  # type: ignore[arg-type]
        )

    async def parts(self) -> AsyncIterator[Part]:
        """Each part; its body must be read before the next is asked for.

        Raises:
            MultipartParseError: it is no such form, or cut off.
        """
        while (event := await self._next()) is not _END:
            if isinstance(event, _Began):
                name = _parameter(event.disposition, b"name")
                if name is None:
                    raise MultipartParseError("a field without a name")
                yield Part(name, _parameter(event.disposition, b"filename"), self._body())

    async def _body(self) -> AsyncIterator[bytes]:
        while isinstance(event := await self._next(), bytes):
            yield event

    async def _next(self) -> object:
        queue = self._events.queue
        while not queue:
            piece = await anext(self._pieces, None)
            if piece is None:
                if not self._events.whole:
                    raise MultipartParseError("a form that is cut off")
                return _END
            self._parser.write(piece)
        return queue.popleft()


class NotAFormError(Exception):
    """The body is none of multipart/form-data with a boundary."""


def open_form(request: Request) -> Form:
    """The form in a request's body, before any of it is read.

    Raises:
        NotAFormError: the body is none.
        HTTPException: 413, it says that it is larger than any upload may be.
    """
    http: HttpSettings = request.app.state.settings.http
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > http.max_upload_bytes + _MAX_BESIDE_BYTES:
        message = f"Content-Length: got {declared}; allowed: at most {http.max_upload_bytes} bytes of files"
        raise HTTPException(413, message, CLOSE)
    return Form(request.headers.get("content-type", ""), arriving(request.stream(), http.idle_seconds))


def is_small(request: Request) -> bool:
    """Whether a body is no larger than any other may be, by what its sender says."""
    declared = request.headers.get("content-length", "")
    http: HttpSettings = request.app.state.settings.http
    return declared.isdigit() and int(declared) <= http.max_body_bytes


def missing(*names: str) -> OldFailure:
    """The answer to a form without fields that it needs."""
    return invalid([
        {"type": "missing", "loc": ("body", name), "msg": "Field required", "input": None} for name in names
    ])  # fmt: skip


def malformed(error: MultipartParseError) -> HTTPException:
    """The answer to a body that is no form."""
    return HTTPException(400, f"the form cannot be read: {error}", CLOSE)


_END = object()


def _parameter(value: bytes, name: bytes) -> str | None:
    """A parameter of a header's value, without its quotes."""
    found = parse_options_header(value.decode("latin-1"))[1].get(name)
    return None if found is None else found.decode("utf-8", "replace")
