"""What the routes share: the backends, answers made of messages, names made of path segments."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Annotated, Any, Protocol
from urllib.parse import quote

from fastapi import Depends, Query, Request
from fastapi.responses import JSONResponse, StreamingResponse
from google.protobuf.message import Message
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from starlette.types import Receive, Scope, Send

from guidehall.core.errors import InvalidArgument, NotFound
from guidehall.core.names import DEFAULT_PROJECT, Pattern
from guidehall.core.threads import by_size
from services.gateway.backends import Backends
from services.gateway.messages import to_json


def _backends(request: Request) -> Backends:
    backends: Backends = request.app.state.backends
    return backends


BackendsDep = Annotated[Backends, Depends(_backends)]
PageSize = Annotated[int, Query(ge=0, le=1000, description="At most so many; 0 lets the server choose")]
PageToken = Annotated[str, Query(max_length=1024, description="`next_page_token` of the page before")]
Filter = Annotated[
    str, Query(max_length=2000, description='Terms such as `state = "RUNNING"`, joined by AND')
]

INT64 = 2**63
Offset = Annotated[int, Query(ge=0, lt=INT64, description="Start here, to go on with a broken download")]


def _unicode(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        # JSON can name half of a surrogate pair, which no message holds.
        raise ValueError("not Unicode text: it has half of a surrogate pair") from None
    return text


Text = Annotated[str, AfterValidator(_unicode)]
Version = Annotated[int, Field(ge=0, lt=INT64, description="0 takes the newest")]


class Body(BaseModel):
    """A JSON body, or an object in one: fields it does not know are refused."""

    model_config = ConfigDict(extra="forbid")


async def answer(message: Message, status_code: int = 200) -> JSONResponse:
    """A message as the body of an answer."""
    return await by_size(message.ByteSize(), lambda: JSONResponse(to_json(message), status_code=status_code))


def returns(message: type[Message], description: str = "") -> dict[str, Any]:
    """Keyword arguments for a route decorator: documents the answer's message; its schema is added by the
    app."""
    reference = {"$ref": f"#/components/schemas/{message.DESCRIPTOR.name}"}
    content = {"application/json": {"schema": reference}}
    DOCUMENTED.add(message)
    return {"responses": {200: {"description": description or message.DESCRIPTOR.name, "content": content}}}


DOCUMENTED: set[type[Message]] = set()


def resource(pattern: Pattern, **ids: str | int) -> str:
    """The full name of a resource of the default project.

    Raises:
        NotFound: a path segment cannot be part of any name.
    """
    name = pattern.format(project=DEFAULT_PROJECT, **ids)
    try:
        pattern.parse(name)
    except InvalidArgument as error:
        raise NotFound(f"{name[:200]} does not exist") from error
    return name


class Cancellable(Protocol):
    """A call that goes on."""

    def cancel(self) -> object:
        """Ends it."""
        ...


class Streamed(StreamingResponse):
    """An attachment piece by piece, as a call gives it; the call ends with the answer."""

    def __init__(
        self,
        call: Cancellable,
        pieces: AsyncIterator[str | bytes],
        media_type: str,
        filename: str,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        named = f"attachment; filename*=UTF-8''{quote(filename, safe='')}"
        super().__init__(
            pieces, media_type=media_type, headers={"Content-Disposition": named, **(headers or {})}
        )
        self._call = call

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            # Not left to the generator, which may stand where its reader left it for a long time.
            self._call.cancel()


async def begun(call: Any) -> tuple[Any, AsyncIterator[Any]]:
    """A call's first message and those that follow: a refusal comes before an answer has begun."""
    messages = aiter(call)
    try:
        return await anext(messages), messages
    except BaseException:
        call.cancel()
        raise


async def chunks(messages: AsyncIterator[Any]) -> AsyncIterator[bytes]:
    """The content in messages that follow on a header."""
    async for message in messages:
        yield message.chunk.data


async def download(call: Any) -> Streamed:
    """The answer to a request for content, once the service has begun to give it."""
    first, messages = await begun(call)
    header = first.header
    headers = {
        "Content-Length": str(header.object.size_bytes - header.offset_bytes),
        "ETag": f'"{header.object.sha256}"',
    }
    media_type = header.object.media_type or "application/octet-stream"
    return Streamed(call, chunks(messages), media_type, header.filename, headers)
