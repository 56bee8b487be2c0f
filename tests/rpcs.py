"""Every rpc of the contracts, from the .proto files themselves.

The generated modules cannot all be imported where tritonclient is: its messages have the names of the Open
Inference Protocol's, as ours have, and a process knows each name once.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from pathlib import Path

from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_tools import protoc

_PROTOS = Path(__file__).parents[1] / "protos"


@cache
def _described() -> tuple[DescriptorPool, tuple[str, ...]]:
    """A pool of its own, and the names of our files in it."""
    own = sorted(str(path.relative_to(_PROTOS)) for path in _PROTOS.rglob("*.proto"))
    with tempfile.NamedTemporaryFile() as target:
        includes = [f"-I{_PROTOS}", f"-I{files('grpc_tools') / '_proto'}"]
        if protoc.main(["protoc", *includes, "--include_imports", f"-o{target.name}", *own]) != 0:
            raise RuntimeError("the .proto files cannot be read")
        described = FileDescriptorSet.FromString(Path(target.name).read_bytes())
    pool = DescriptorPool()
    for file in described.file:
        pool.AddSerializedFile(file.SerializeToString())
    return pool, tuple(own)


def methods() -> Iterator[MethodDescriptor]:
    """Every rpc of every service."""
    pool, own = _described()
    for name in own:
        for service in pool.FindFileByName(name).services_by_name.values():
            yield from service.methods


def full_name(method: MethodDescriptor) -> str:
    """As it travels, such as "/guidehall.jobs.v1.JobsService/GetJob"."""
    return f"/{method.containing_service.full_name}/{method.name}"
