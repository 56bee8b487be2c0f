"""Random messages, and damaged ones, for every rpc of every server, from callers of every kind.

`GUIDEHALL_FUZZ_LONG=1` makes more calls of each rpc.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from guidehall.core.auth import KeyPair, TokenIssuer
from guidehall.local.control import status
from guidehall.local.identity import Identity
from tests.fuzz.messages import Maker
from tests.fuzz.site import furnish

SEED = 20_001
CALLS = 40 if os.environ.get("GUIDEHALL_FUZZ_LONG") else 8
SERVERS = ("storage", "trainer", "inference")
# A stream that waits for news is left after this.
SECONDS = 2.0
REFLECTION = "grpc.reflection."
WRONG = (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.UNIMPLEMENTED)
# Of the Open Inference Protocol, what this server does not have: it says so.
NOT_OFFERED = frozenset(
    f"inference.GRPCInferenceService.{name}"
    for name in ("ModelStreamInfer", "ModelConfig", "ModelStatistics")
)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_no_message_breaks_a_server(token_platform: Path) -> None:
    endpoints = status(token_platform).endpoints
    site = furnish(
        endpoints["gateway"], (token_platform / "secrets" / "administrator.token").read_text().strip()
    )
    maker = Maker(SEED, [*site["resources"], *map(str, site["names"].values())])
    callers = [site["key"], site["worker_token"], *_services(token_platform)]
    answers: defaultdict[str, Counter[grpc.StatusCode]] = defaultdict(Counter)
    wrong = []
    for server in SERVERS:
        with grpc.insecure_channel(endpoints[server]) as channel:
            for method in _methods(channel):
                for number in range(CALLS):
                    call = _drawn(maker, method, callers, damaged=number % 3 == 2)
                    code, details = call.made(channel)
                    answers[method.full_name][code] += 1
                    told = code is grpc.StatusCode.UNIMPLEMENTED and method.full_name in NOT_OFFERED
                    if code in WRONG and not told:
                        wrong.append((method.full_name, code.name, details, call))
    for name, counts in sorted(answers.items()):
        print(f"{name}  { ({code.name: count for code, count in counts.most_common()}) }")
    print(f"{sum(map(Counter.total, answers.values()))} calls of {len(answers)} rpcs")
    assert not wrong, "\n".join(map(str, wrong[:20]))
    for server in (*SERVERS, "gateway"):
        assert "Traceback" not in (token_platform / "logs" / f"{server}.log").read_text(), server


@dataclass(frozen=True)
class Call:
    """One call."""

    method: MethodDescriptor
    requests: tuple[bytes, ...]
    credential: str

    def made(self, channel: grpc.Channel) -> tuple[grpc.StatusCode, str]:
        """How it ends. What is answered is not looked at."""
        path = f"/{self.method.containing_service.full_name}/{self.method.name}"
        metadata = (("authorization", f"Bearer {self.credential}"),)
        # To gRPC every call is a stream of messages each way.
        answers = channel.stream_stream(path)(iter(self.requests), timeout=SECONDS, metadata=metadata)
        try:
            for _ in answers:
                pass
        except grpc.RpcError as error:
            return error.code(), error.details() or ""
        return grpc.StatusCode.OK, ""


def _drawn(maker: Maker, method: MethodDescriptor, callers: list[str], damaged: bool) -> Call:
    count = maker.pick((0, 1, 1, 3)) if method.client_streaming else 1
    requests = [maker.message(method.input_type).SerializeToString() for _ in range(count)]
    if damaged:
        requests = [maker.damaged(request) for request in requests]
    return Call(method, tuple(requests), maker.pick(callers))


def _methods(channel: grpc.Channel) -> Iterator[MethodDescriptor]:
    """All that a server says of itself."""
    database = ProtoReflectionDescriptorDatabase(channel)
    pool = DescriptorPool(database)
    for name in sorted(database.get_services()):
        if not name.startswith(REFLECTION):
            yield from pool.FindServiceByName(name).methods


def _services(folder: Path) -> list[str]:
    """Tokens of the services themselves."""
    identity = Identity(folder / "identity")
    issuers: dict[str, Any] = {
        name: TokenIssuer(name, KeyPair.load(identity.key_file(name)))
        for name in ("gateway", "trainer", "storage", "inference")
    }
    return [issuer.mint(name, "service", ttl_seconds=3600) for name, issuer in issuers.items()]
