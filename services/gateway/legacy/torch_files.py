"""Weights as `torch.save(model.state_dict())` writes them (.pth), from and to safetensors, as they pass by.

Nothing is unpickled and torch is not needed: of a pickle only what describes plain tensors is understood, and
all else is refused. Nothing is held whole: in both formats tensors are the same bytes, one after the other.
"""

from __future__ import annotations

import asyncio
import json
import struct
import zlib
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from guidehall.core.errors import InvalidArgument
from services.gateway.legacy.state_pickle import TYPES, Tensor, read_state, write_state

Pieces: TypeAlias = AsyncIterator[bytes]

TORCH_MAGIC = b"PK\x03\x04"
ALLOWED = "a file by torch.save(model.state_dict()) of torch 1.6 or newer, or a safetensors file"

_DESCRIPTOR_MAGIC, _DIRECTORY_MAGIC, _END_MAGIC = b"PK\x07\x08", b"PK\x01\x02", b"PK\x05\x06"
_LOCAL_HEADER, _DIRECTORY_ENTRY = struct.Struct("<4s5H3I2H"), struct.Struct("<4s6H3I5H2I")
_DESCRIPTOR, _LONG_DESCRIPTOR, _END = (
    struct.Struct("<4s3I"),
    struct.Struct("<4sI2Q"),
    struct.Struct("<4s4H2IH"),
)
# Sizes and checksum follow the content; names are UTF-8.
_FLAGS = 0x0808
_ENCRYPTED, _SIZES_FOLLOW = 0x1, 0x8
_PIECE_BYTES = 1 << 20
_MAX_PICKLE_BYTES = 1 << 20
_MAX_NAME_BYTES = 1024
_MAX_EXTRA_BYTES = 4096
# Of the records beside the tensors: versions, byte order, an id.
_MAX_NOTE_BYTES = 64 << 10
_MAX_RECORDS = 2000
# Two tensors wait for the third, which tells in what order they come.
_MAX_HELD_BYTES = 16 << 20
_MAX_HEADER_BYTES = 1 << 20
# What the sizes in this kind of archive can say.
_MAX_FILE_BYTES = (1 << 32) - 1
_ALIGNMENT = 64
_MAX_DIMENSIONS, _MAX_LENGTH = 64, 1 << 53


# From .pth to safetensors.


async def to_safetensors(pieces: Pieces) -> Pieces:
    """The safetensors file with the tensors of a .pth file.

    Raises:
        InvalidArgument: it is none, or holds anything else than plain tensors.
    """
    archive = _Archive(_Reader(pieces))
    tensors = await asyncio.to_thread(read_state, await archive.pickle())
    by_key = {tensor.key: (name, tensor) for name, tensor in tensors.items()}
    order: list[str] | None = None
    held: list[tuple[str, bytes]] = []
    candidates = [list(by_key), sorted(by_key)]
    position = 0
    async for key, size in archive.tensors({key: tensor.size_bytes for key, (_, tensor) in by_key.items()}):
        candidates = [keys for keys in candidates if keys[position : position + 1] == [key]]
        if not candidates:
            raise _refused("an archive whose tensors come in no order that torch writes")
        position += 1
        if order is None and all(keys == candidates[0] for keys in candidates):
            order = candidates[0]
            yield _safetensors_header([by_key[key] for key in order])
            for _, content in held:
                yield content
            held.clear()
        if order is None:
            # Older versions of torch write "10" before "2": the third tensor tells.
            if size + sum(len(content) for _, content in held) > _MAX_HELD_BYTES:
                raise _refused(f"tensors of more than {_MAX_HELD_BYTES} bytes first")
            held.append((key, b"".join([piece async for piece in archive.content(size)])))
            continue
        async for piece in archive.content(size):
            yield piece
    if position != len(by_key):
        raise _refused(f"an archive that ends after {position} of {len(by_key)} tensors")


def _safetensors_header(tensors: Iterable[tuple[str, Tensor]]) -> bytes:
    entries, offset = {}, 0
    for name, tensor in tensors:
        end = offset + tensor.size_bytes
        entries[name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


class _Reader:
    """Reads from pieces as they come."""

    def __init__(self, pieces: Pieces) -> None:
        self._pieces = pieces
        self._buffer = bytearray()

    async def peek(self, count: int) -> bytes:
        """The next bytes, which stay: at most `count`, fewer at the end."""
        while len(self._buffer) < count and (piece := await anext(self._pieces, None)) is not None:
            self._buffer += piece
        return bytes(self._buffer[:count])

    async def take(self, count: int) -> bytes:
        """The next bytes.

        Raises:
            InvalidArgument: fewer are left.
        """
        found = await self.peek(count)
        if len(found) < count:
            raise _refused("a file that is cut off")
        del self._buffer[:count]
        return found

    async def pass_on(self, count: int) -> Pieces:
        """The next bytes in pieces.

        Raises:
            InvalidArgument: fewer are left.
        """
        while count:
            piece = await self.take(min(count, _PIECE_BYTES))
            count -= len(piece)
            yield piece

    async def drain(self) -> None:
        """Reads the rest away."""
        self._buffer.clear()
        async for _ in self._pieces:
            pass

    async def until_descriptor(self, limit: int) -> bytes:
        """The content of a record whose size is told behind it."""
        found = await self.peek(limit + _LONG_DESCRIPTOR.size)
        start = found.find(_DESCRIPTOR_MAGIC)
        while 0 <= start <= limit:
            if _descriptor(found, start, start) is not None:
                return await self.take(start)
            start = found.find(_DESCRIPTOR_MAGIC, start + 1)
        raise _refused(f"an archive with a record of more than {limit} bytes beside its tensors")


def _descriptor(data: bytes, at: int, size: int) -> tuple[int, int] | None:
    """Checksum in, and length of, the descriptor at a place in `data`; None when it is none for `size`."""
    for form in (_DESCRIPTOR, _LONG_DESCRIPTOR):
        if len(data) >= at + form.size:
            magic, crc, packed, whole = form.unpack_from(data, at)
            if magic == _DESCRIPTOR_MAGIC and packed == whole == size:
                return crc, form.size
    return None


class _Archive:
    """An archive that torch wrote, from its beginning."""

    def __init__(self, reader: _Reader) -> None:
        self._reader = reader
        self._prefix = ""
        # Of the record at hand: whether its sizes follow, else its checksum.
        self._sizes_follow, self._crc = False, 0

    async def pickle(self) -> bytes:
        """The pickle, which is the first record."""
        head = await self._header()
        if head is None or not head[0].endswith("/data.pkl"):
            raise _refused("an archive that is none of torch")
        self._prefix = head[0].removesuffix("data.pkl")
        return await self._note(head[1], _MAX_PICKLE_BYTES)

    async def tensors(self, sizes: dict[str, int]) -> AsyncIterator[tuple[str, int]]:
        """Key and size in bytes of each tensor in turn; its `content` must be read before the next."""
        prefix, seen = f"{self._prefix}data/", set[str]()
        for _ in range(_MAX_RECORDS):
            head = await self._header()
            if head is None:
                await self._reader.drain()
                return
            name, size = head
            key = name.removeprefix(prefix)
            if name.startswith(prefix) and key in sizes and key not in seen:
                if not self._sizes_follow and size != sizes[key]:
                    raise _refused(f"a tensor of {size} bytes that the pickle says has {sizes[key]}")
                seen.add(key)
                yield key, sizes[key]
                continue
            note = await self._note(size, _MAX_NOTE_BYTES)
            if name == f"{self._prefix}byteorder" and note != b"little":
                raise _refused("weights of a big-endian machine")
        raise _refused(f"an archive of more than {_MAX_RECORDS} records")

    async def content(self, size: int) -> Pieces:
        """A record's content; its checksum must be right."""
        crc = 0
        async for piece in self._reader.pass_on(size):
            crc = zlib.crc32(piece, crc)
            yield piece
        await self._end(size, crc)

    async def _note(self, size: int, limit: int) -> bytes:
        if self._sizes_follow:
            data = await self._reader.until_descriptor(limit)
        elif size <= limit:
            data = await self._reader.take(size)
        else:
            raise _refused(f"an archive with a record of {size} bytes beside its tensors")
        await self._end(len(data), zlib.crc32(data))
        return data

    async def _end(self, size: int, crc: int) -> None:
        told = self._crc
        if self._sizes_follow:
            found = _descriptor(await self._reader.peek(_LONG_DESCRIPTOR.size), 0, size)
            if found is None:
                raise _refused("an archive whose records have other sizes than its pickle says")
            told = found[0]
            await self._reader.take(found[1])
        if told != crc:
            raise _refused("a damaged archive: a checksum is wrong")

    async def _header(self) -> tuple[str, int] | None:
        """Name and size of the next record; the size is 0 when it follows. None after the last one."""
        magic = await self._reader.peek(4)
        if magic in (_DIRECTORY_MAGIC, _END_MAGIC):
            return None
        header = _LOCAL_HEADER.unpack(await self._reader.take(_LOCAL_HEADER.size))
        magic, _, flags, method, _, _, crc, packed, size, name_bytes, extra_bytes = header
        if magic != TORCH_MAGIC or flags & _ENCRYPTED:
            raise _refused("no archive that torch writes")
        if method != 0 or packed != size:
            raise _refused("a compressed archive, which torch does not write")
        if name_bytes > _MAX_NAME_BYTES or extra_bytes > _MAX_EXTRA_BYTES:
            raise _refused("an archive with names that are too long")
        name = (await self._reader.take(name_bytes)).decode("utf-8", "replace")
        await self._reader.take(extra_bytes)
        self._sizes_follow, self._crc = bool(flags & _SIZES_FOLLOW), crc
        return name, size


# From safetensors to .pth.


async def checked_safetensors(pieces: Pieces) -> Pieces:
    """A safetensors file, as it comes.

    Raises:
        InvalidArgument: it is none, or longer or shorter than its header says.
    """
    reader = _Reader(pieces)
    length = await _header_bytes(reader)
    tensors = _described(await reader.peek(length))
    async for piece in reader.pass_on(length + sum(tensor.size_bytes for tensor in tensors.values())):
        yield piece
    if await reader.peek(1):
        raise _refused("a safetensors file that is longer than its header says")


async def _header_bytes(reader: _Reader) -> int:
    """How long the header of a safetensors file is, with its length before it."""
    length = int.from_bytes(await reader.peek(8), "little")
    if not 2 <= length <= _MAX_HEADER_BYTES:
        raise _refused(f"a safetensors header of {length} bytes")
    return 8 + length


def _described(header: bytes) -> dict[str, Tensor]:
    """The tensors of a safetensors file in the order of their numbers, one right after the other."""
    try:
        entries = json.loads(header[8:])
        entries.pop("__metadata__", None)
        spans = sorted((*_span(name, entry), name) for name, entry in entries.items())
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise _refused("a safetensors header that makes no sense") from None
    tensors, end = {}, 0
    for number, (start, stop, name) in enumerate(spans):
        tensor = Tensor(str(number), entries[name]["dtype"], tuple(entries[name]["shape"]))
        if start != end or tensor.dtype not in TYPES or stop - start != tensor.size_bytes:
            raise _refused(f"a tensor {name[:80]!r} of another type or size than its place in the file has")
        tensors[name] = tensor
        end = stop
    return tensors


def _span(name: str, entry: Any) -> tuple[int, int]:
    """Where the numbers of a tensor begin and end.

    Raises:
        ValueError, TypeError, KeyError, AttributeError: it is not described as safetensors does.
    """
    name.encode()
    start, stop = entry["data_offsets"]
    numbers = [start, stop, *entry["shape"]]
    if len(numbers) > _MAX_DIMENSIONS + 2 or not isinstance(entry["dtype"], str):
        raise ValueError
    if not all(type(number) is int and 0 <= number < _MAX_LENGTH for number in numbers):
        raise ValueError
    return start, stop


@dataclass(frozen=True)
class TorchFile:
    """A .pth file to be sent.

    Attributes:
        size_bytes: of the whole.
        pieces: the file.
    """

    size_bytes: int
    pieces: Pieces


async def to_torch(pieces: Pieces) -> TorchFile:
    """The .pth file with the tensors of a safetensors file.

    Raises:
        InvalidArgument: it is none, has a type that torch cannot save so, or more bytes than such a file may
            have.
    """
    reader = _Reader(pieces)
    tensors = _described(await reader.take(await _header_bytes(reader)))
    records = [
        _Record("archive/data.pkl", write_state(tensors)),
        _Record("archive/byteorder", b"little"),
        *(_Record(f"archive/data/{tensor.key}", tensor.size_bytes) for tensor in tensors.values()),
        _Record("archive/version", b"3\n"),
    ]
    writer = _Writer(records)
    if writer.size_bytes > _MAX_FILE_BYTES:
        raise _refused(f"a model of {writer.size_bytes} bytes")
    return TorchFile(writer.size_bytes, writer.pieces(reader))


@dataclass(frozen=True)
class _Record:
    """A file in the archive: its content, or how many bytes of the tensors it is."""

    name: str
    content: bytes | int

    @property
    def size(self) -> int:
        return self.content if isinstance(self.content, int) else len(self.content)


class _Writer:
    """An archive whose size is known before its content."""

    def __init__(self, records: Sequence[_Record]) -> None:
        self._records = records
        self._offsets = [0]
        for record in records:
            start = self._offsets[-1]
            head = len(_local_header(record, start))
            self._offsets.append(start + head + record.size + _DESCRIPTOR.size)
        directory = sum(_DIRECTORY_ENTRY.size + len(record.name) for record in records)
        self.size_bytes = self._offsets[-1] + directory + _END.size

    async def pieces(self, tensors: _Reader) -> Pieces:
        """The archive, with what comes from `tensors` in the records that have no content of their own."""
        directory = b""
        for record, offset in zip(self._records, self._offsets, strict=False):
            yield _local_header(record, offset)
            crc = 0
            if isinstance(record.content, int):
                async for piece in tensors.pass_on(record.size):
                    crc = zlib.crc32(piece, crc)
                    yield piece
            else:
                crc = zlib.crc32(record.content)
                yield record.content
            yield _DESCRIPTOR.pack(_DESCRIPTOR_MAGIC, crc, record.size, record.size)
            directory += _DIRECTORY_ENTRY.pack(
                _DIRECTORY_MAGIC, 0, 0, _FLAGS, 0, 0, 0, crc, record.size, record.size, len(record.name),
                0, 0, 0, 0, 0, offset,
            ) + record.name.encode("ascii")  # fmt: skip
        count = len(self._records)
        yield directory
        yield _END.pack(_END_MAGIC, 0, 0, count, count, len(directory), self._offsets[-1], 0)


def _local_header(record: _Record, offset: int) -> bytes:
    """What stands before a record at `offset`; its content begins where torch wants it."""
    name = record.name.encode("ascii")
    # An extra field has four bytes of its own.
    padding = -(offset + _LOCAL_HEADER.size + len(name) + 4) % _ALIGNMENT
    extra = b"FB" + padding.to_bytes(2, "little") + b"Z" * padding
    head = _LOCAL_HEADER.pack(TORCH_MAGIC, 0, _FLAGS, 0, 0, 0, 0, 0, 0, len(name), len(extra))
    return head + name + extra


def _refused(got: str) -> InvalidArgument:
    return InvalidArgument(f"got {got}; allowed: {ALLOWED}", reason="CONTENT_REFUSED")
