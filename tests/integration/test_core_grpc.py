"""The gRPC server and channels of every service, over real connections."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import textwrap
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from prometheus_client import REGISTRY

from guidehall.contracts.jobs.v1.jobs_pb2 import Job, SubmitJobRequest
from guidehall.core.auth import (
    Authenticator,
    KeyPair,
    Kind,
    Policy,
    Principal,
    Role,
    TokenIssuer,
    TrustStore,
    current_principal,
    set_principal,
)
from guidehall.core.channels import ServiceTokens, credentials_interceptors, open_channel
from guidehall.core.deadlines import set_deadline, time_remaining
from guidehall.core.errors import (
    AppError,
    Cancelled,
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
    Unimplemented,
    from_rpc_error,
)
from guidehall.core.grpc_server import GrpcServer, Service
from guidehall.core.settings import AuthSettings, ChannelSettings, GrpcSettings
from guidehall.core.telemetry import begin_request, current_trace_id, job_id

NAME = "toy.v1.ToyService"
KINDS = {"One": (False, False), "Many": (False, True), "Upload": (True, False), "Talk": (True, True)}
ANYBODY = {f"/{NAME}/*": Policy(kinds=frozenset({"user", "guest", "service"}))}


def _declare() -> None:
    """Makes the toy service known by its descriptor, as generated code does."""
    file = descriptor_pb2.FileDescriptorProto(
        name="toy/v1/toy.proto",
        package="toy.v1",
        syntax="proto3",
        dependency=["guidehall/jobs/v1/jobs.proto"],
    )
    service = file.service.add(name="ToyService")
    for name, (streams_requests, streams_answers) in {**KINDS, "Closed": (False, False)}.items():
        service.method.add(
            name=name,
            input_type=".guidehall.jobs.v1.SubmitJobRequest",
            output_type=".guidehall.jobs.v1.Job",
            client_streaming=streams_requests,
            server_streaming=streams_answers,
        )
    descriptor_pool.Default().Add(file)


_declare()


class Toy:
    """A servicer that does what `display_name` says."""

    def __init__(self) -> None:
        self.started = asyncio.Event()
        self.cleaned = asyncio.Event()

    async def act(self, request: SubmitJobRequest, context: Any) -> Job:
        match request.display_name:
            case "fail":
                raise ValueError("/secret/path")
            case "refuse":
                raise NotFound("no such job", reason="NO_JOB", metadata={"a": "b"})
            case "sleep":
                await self._sleep()
            case "cancel something else":
                task = asyncio.create_task(asyncio.sleep(60))
                task.cancel()
                await task
            case "abort":
                await context.abort(grpc.StatusCode.OUT_OF_RANGE, "past the end")
            case "set a code":
                context.set_code(grpc.StatusCode.DATA_LOSS)
            case "time out inside":
                async with asyncio.timeout(0):
                    await asyncio.sleep(60)
            case "left out":
                context.set_code(grpc.StatusCode.UNIMPLEMENTED)
                raise NotImplementedError
            case "forget":
                raise NotImplementedError
            case "tell the job":
                return Job(display_name=job_id.get())
            case "tell":
                principal = current_principal()
                told = [principal.subject, principal.actor, time_remaining(), current_trace_id()]
                return Job(display_name=json.dumps(told))
            case code if code.startswith("call that fails with "):
                metadata = grpc.aio.Metadata()
                raise grpc.aio.AioRpcError(
                    grpc.StatusCode[code.rpartition(" ")[2]], metadata, metadata, "10.0.0.1"
                )
        return Job(name=request.display_name)

    async def _sleep(self) -> None:
        self.started.set()
        try:
            await asyncio.sleep(60)
        finally:
            self.cleaned.set()

    async def one(self, request: SubmitJobRequest, context: Any) -> Job:
        return await self.act(request, context)

    async def many(self, request: SubmitJobRequest, context: Any) -> AsyncIterator[Job]:
        yield Job(name="first")
        while request.display_name == "flood":
            yield Job(name="x" * 100_000)
        yield await self.act(request, context)

    async def upload(self, requests: AsyncIterator[SubmitJobRequest], context: Any) -> Job:
        answer = Job()
        async for request in requests:
            answer = await self.act(request, context)
        return answer

    async def talk(self, requests: AsyncIterator[SubmitJobRequest], context: Any) -> None:
        async for request in requests:
            await context.write(await self.act(request, context))

    def register(self, _: object, server: grpc.aio.Server) -> None:
        makers = {
            "One": grpc.unary_unary_rpc_method_handler(self.one, *_CODEC),
            "Closed": grpc.unary_unary_rpc_method_handler(self.one, *_CODEC),
            "Many": grpc.unary_stream_rpc_method_handler(self.many, *_CODEC),
            "Upload": grpc.stream_unary_rpc_method_handler(self.upload, *_CODEC),
            "Talk": grpc.stream_stream_rpc_method_handler(self.talk, *_CODEC),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(NAME, makers),))


_CODEC = (SubmitJobRequest.FromString, Job.SerializeToString)
_CLIENT_CODEC = {
    "request_serializer": SubmitJobRequest.SerializeToString,
    "response_deserializer": Job.FromString,
}


async def call(
    channel: grpc.aio.Channel, kind: str, *requests: SubmitJobRequest, **options: Any
) -> list[Job]:
    """Calls a method of any kind; failures come as AppErrors."""
    try:
        return await _call(channel, kind, requests, options)
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error) from error


async def _call(
    channel: grpc.aio.Channel, kind: str, requests: tuple[SubmitJobRequest, ...], options: dict[str, Any]
) -> list[Job]:
    started = start(channel, kind, *requests, **options)
    return [job async for job in started] if KINDS.get(kind, (False, False))[1] else [await started]


def start(channel: grpc.aio.Channel, kind: str, *requests: SubmitJobRequest, **options: Any) -> Any:
    """Starts a call of any kind."""
    streams_requests, streams_answers = KINDS.get(kind, (False, False))
    sides = ("stream" if streams_requests else "unary", "stream" if streams_answers else "unary")
    make = getattr(channel, "_".join(sides))(f"/{NAME}/{kind}", **_CLIENT_CODEC)
    return make(iter(requests) if streams_requests else requests[0], **options)


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 (a counter can only be looked at)
            await asyncio.sleep(0.01)


def do(what: str, **fields: Any) -> SubmitJobRequest:
    return SubmitJobRequest(display_name=what, **fields)


@asynccontextmanager
async def serving(
    toy: Toy,
    auth: AuthSettings | None = None,
    policies: dict[str, Policy] | None = None,
    **settings: Any,
) -> AsyncIterator[tuple[GrpcServer, int]]:
    server = GrpcServer(
        GrpcSettings(**settings),
        [Service(NAME, lambda servicer, target: servicer.register(servicer, target), toy)],
        Authenticator(auth or AuthSettings(), "toy"),
        ANYBODY if policies is None else policies,
    )
    port = await server.start()
    try:
        yield server, port
    finally:
        await server.stop()


def open_to(port: int, interceptors: Sequence[grpc.aio.ClientInterceptor] = ()) -> grpc.aio.Channel:
    return open_channel(ChannelSettings(target=f"127.0.0.1:{port}"), interceptors)


@asynccontextmanager
async def connected(
    toy: Toy, *arguments: Any, interceptors: Sequence[grpc.aio.ClientInterceptor] = (), **settings: Any
) -> AsyncIterator[tuple[GrpcServer, grpc.aio.Channel]]:
    async with serving(toy, *arguments, **settings) as (server, port), open_to(port, interceptors) as channel:
        yield server, channel


@pytest.fixture
def toy() -> Toy:
    return Toy()


@pytest.fixture
async def channel(toy: Toy) -> AsyncIterator[grpc.aio.Channel]:
    async with connected(toy, drain_seconds=0.2) as (_, opened):
        yield opened


@pytest.mark.parametrize("kind", KINDS)
async def test_every_kind_of_method_answers(channel: grpc.aio.Channel, kind: str) -> None:
    assert (await call(channel, kind, do("a")))[-1].name == "a"


@pytest.mark.parametrize("kind", KINDS)
async def test_an_error_of_ours_arrives_whole(channel: grpc.aio.Channel, kind: str) -> None:
    with pytest.raises(NotFound) as caught:
        await call(channel, kind, do("refuse"))

    assert (caught.value.message, caught.value.reason, caught.value.metadata) == (
        "no such job",
        "NO_JOB",
        {"a": "b"},
    )


@pytest.mark.parametrize("kind", KINDS)
async def test_any_other_error_is_an_id_for_the_caller_and_a_traceback_for_the_log(
    channel: grpc.aio.Channel, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(Internal) as caught:
        await call(channel, kind, do("fail"))

    assert "secret" not in repr(caught.value.__dict__)
    error_id = caught.value.metadata["error_id"]
    (record,) = [record for record in caplog.records if error_id in record.getMessage()]
    assert record.exc_info is not None
    assert "/secret/path" in str(record.exc_info[1])


@pytest.mark.parametrize(
    ("what", "error"),
    [
        ("cancel something else", Internal),
        ("forget", Internal),
        ("left out", Unimplemented),
        ("time out inside", Unavailable),
        ("call that fails with UNAVAILABLE", Unavailable),
        ("call that fails with DEADLINE_EXCEEDED", DeadlineExceeded),
        ("call that fails with NOT_FOUND", Internal),
        ("call that fails with UNAUTHENTICATED", Internal),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
async def test_what_else_can_go_wrong_in_a_handler(
    channel: grpc.aio.Channel, kind: str, what: str, error: type[AppError]
) -> None:
    with pytest.raises(AppError) as caught:
        await call(channel, kind, do(what), timeout=5)

    assert type(caught.value) is error
    assert "10.0.0.1" not in caught.value.message or error is DeadlineExceeded


async def test_a_handler_may_end_its_call_by_itself(channel: grpc.aio.Channel) -> None:
    with pytest.raises(AppError, match="past the end") as caught:
        await call(channel, "One", do("abort"))

    assert caught.value.code.name == "OUT_OF_RANGE"


def counted(kind: str, code: str) -> float:
    labels = {"method": f"/{NAME}/{kind}", "code": code}
    return REGISTRY.get_sample_value("guidehall_rpc_total", labels) or 0.0


@pytest.mark.parametrize(
    ("what", "code"),
    [("a", "OK"), ("refuse", "NOT_FOUND"), ("abort", "OUT_OF_RANGE"), ("set a code", "DATA_LOSS")],
)
async def test_calls_are_counted_by_their_code(channel: grpc.aio.Channel, what: str, code: str) -> None:
    before = counted("One", code)

    with pytest.raises(AppError) if code != "OK" else nullcontext():
        await call(channel, "One", do(what))

    # The answer may be here before the handler is at its end.
    await eventually(lambda: counted("One", code) == before + 1)
    assert REGISTRY.get_sample_value("guidehall_rpc_running", {"method": f"/{NAME}/One"}) == 0


@pytest.mark.parametrize("kind", KINDS)
async def test_a_caller_that_gives_up_ends_the_handler(
    channel: grpc.aio.Channel, toy: Toy, kind: str
) -> None:
    before = counted(kind, "CANCELLED")
    asked = start(channel, kind, do("sleep"))
    await asyncio.wait_for(toy.started.wait(), 5)

    asked.cancel()

    await asyncio.wait_for(toy.cleaned.wait(), 5)
    await eventually(lambda: counted(kind, "CANCELLED") == before + 1)


async def test_a_unary_call_without_a_deadline_gets_one(toy: Toy) -> None:
    async with connected(toy, default_deadline_seconds=0.1) as (_, channel):
        with pytest.raises(DeadlineExceeded, match="took longer"):
            await call(channel, "One", do("sleep"))
    assert toy.cleaned.is_set()


async def test_no_deadline_is_longer_than_the_server_allows(toy: Toy) -> None:
    async with connected(toy, max_deadline_seconds=0.1) as (_, channel):
        with pytest.raises(DeadlineExceeded, match="took longer"):
            await call(channel, "One", do("sleep"), timeout=60)


async def test_a_stream_lasts_as_long_as_its_caller_likes(toy: Toy) -> None:
    async with connected(
        toy, default_deadline_seconds=0.05, max_deadline_seconds=0.05, drain_seconds=0.1
    ) as (_, channel):
        told = json.loads((await call(channel, "Many", do("tell")))[-1].display_name)
    assert told[2] is None


@pytest.mark.parametrize("kind", KINDS)
async def test_a_callers_deadline_ends_the_handler(channel: grpc.aio.Channel, toy: Toy, kind: str) -> None:
    with pytest.raises(DeadlineExceeded):
        await call(channel, kind, do("sleep"), timeout=0.2)

    await asyncio.wait_for(toy.cleaned.wait(), 5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("number", [float("nan"), float("inf")])
async def test_requests_are_checked_before_any_handler(
    channel: grpc.aio.Channel, kind: str, number: float
) -> None:
    bad = do("a")
    bad.params["layers"] = [{"thickness": number}]

    with pytest.raises(InvalidArgument) as caught:
        await call(channel, kind, bad)

    assert [violation.field for violation in caught.value.violations] == ["params.layers[0].thickness"]


@pytest.mark.parametrize("kind", ["Upload", "Talk"])
async def test_every_request_of_a_stream_is_checked(channel: grpc.aio.Channel, kind: str) -> None:
    with pytest.raises(InvalidArgument, match="request_id"):
        await call(channel, kind, do("a"), do("b", request_id="no uuid"))


@pytest.mark.parametrize("kind", KINDS)
async def test_a_struct_over_the_limit_is_refused(toy: Toy, kind: str) -> None:
    large = do("a")
    large.params["layers"] = [None] * 1000
    async with connected(toy, max_struct_bytes=2000) as (_, channel):
        with pytest.raises(
            InvalidArgument, match=r"params: got '4\d\d\d bytes'; allowed: at most 2000 bytes"
        ):
            await call(channel, kind, large)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("nested", [False, True])
async def test_a_request_that_cannot_be_read_is_refused(
    channel: grpc.aio.Channel, kind: str, nested: bool, caplog: pytest.LogCaptureFixture
) -> None:
    content = _params_nested(60) if nested else b"\xff\xff"
    streams_requests, streams_answers = KINDS[kind]
    sides = ("stream" if streams_requests else "unary", "stream" if streams_answers else "unary")
    method = getattr(channel, "_".join(sides))(f"/{NAME}/{kind}", response_deserializer=Job.FromString)
    asked = method(iter([content]) if streams_requests else content)

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        _ = [answer async for answer in asked] if streams_answers else await asked

    assert from_rpc_error(caught.value).reason == "UNREADABLE_REQUEST"
    assert not caplog.records


@pytest.mark.parametrize(
    "method",
    [
        "grpc.health.v1.Health/Check",
        "grpc.health.v1.Health/Watch",
        "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    ],
)
async def test_what_others_wrote_gets_no_request_that_cannot_be_read(
    channel: grpc.aio.Channel, method: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        _ = [answer async for answer in channel.stream_stream(f"/{method}")(iter([b"\xff\xff"]))]
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def _params_nested(depth: int) -> bytes:
    """A request as it travels, with lists in lists in its parameters: deeper than Python could write it."""
    value = b""
    for _ in range(depth):
        value = _field(6, _field(1, value))
    return _field(3, _field(1, _field(1, b"a") + _field(2, value)))


def _field(number: int, content: bytes) -> bytes:
    size, head = len(content), bytearray([number << 3 | 2])
    while size > 127:
        head.append(size & 127 | 128)
        size >>= 7
    return bytes([*head, size]) + content


async def test_a_reader_that_hangs_up_is_no_fault_of_ours(
    channel: grpc.aio.Channel, caplog: pytest.LogCaptureFixture
) -> None:
    before = counted("Many", "CANCELLED")
    for _ in range(20):
        asked = start(channel, "Many", do("flood"))
        await asked.read()
        await asked.read()
        asked.cancel()

    await eventually(lambda: counted("Many", "CANCELLED") == before + 20)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_a_message_over_the_limit_is_refused(toy: Toy) -> None:
    async with connected(toy, max_receive_bytes=5000) as (_, channel):
        with pytest.raises(ResourceExhausted):
            await call(channel, "One", do("x" * 6000))


async def test_a_method_without_a_policy_is_refused(toy: Toy) -> None:
    async with connected(toy, policies={f"/{NAME}/One": ANYBODY[f"/{NAME}/*"]}) as (_, channel):
        assert await call(channel, "One", do("a"))
        for kind in ("Closed", "Many", "Upload", "Talk"):
            with pytest.raises(PermissionDenied) as caught:
                await call(channel, kind, do("a"))
            assert caught.value.reason == "NO_POLICY"


async def test_the_policy_of_a_method_goes_before_that_of_its_service(toy: Toy) -> None:
    policies = ANYBODY | {f"/{NAME}/Closed": Policy(kinds=frozenset({"worker"}))}
    async with connected(toy, policies=policies) as (_, channel):
        assert await call(channel, "One", do("a"))
        with pytest.raises(PermissionDenied):
            await call(channel, "Closed", do("a"))


def test_a_policy_for_a_method_that_there_is_not_is_a_slip(toy: Toy) -> None:
    with pytest.raises(ValueError, match=r"/toy\.v1\.ToyService/Won"):
        GrpcServer(
            GrpcSettings(),
            [Service(NAME, lambda servicer, target: servicer.register(servicer, target), toy)],
            Authenticator(AuthSettings(), "toy"),
            {f"/{NAME}/Won": Policy()},
        )


class Site:
    """Keys and the trust file of an installation."""

    def __init__(self, folder: Path) -> None:
        self.gateway = TokenIssuer("gateway", KeyPair.generate())
        self.trainer = TokenIssuer("trainer", KeyPair.generate())
        path = folder / "trust.json"
        path.write_text(
            json.dumps(
                TrustStore.entry(self.gateway.key, "gateway", ["service"], may_delegate=True)
                | TrustStore.entry(self.trainer.key, "trainer", ["service", "job"])
            )
        )
        self.auth = AuthSettings(mode="token", trust_file=path)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


async def test_without_a_credential_only_health_and_reflection_are_open(toy: Toy, site: Site) -> None:
    async with (
        serving(toy, site.auth) as (_, port),
        open_to(port) as channel,
    ):
        for kind in KINDS:
            with pytest.raises(Unauthenticated):
                await call(channel, kind, do("a"))
        answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=NAME))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        asked = reflection_pb2.ServerReflectionRequest(list_services="")
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        (reflected,) = [reply async for reply in stub.ServerReflectionInfo(iter([asked]))]
        assert NAME in [service.name for service in reflected.list_services_response.service]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_service_calls_for_its_own_caller(toy: Toy, site: Site, kind: str) -> None:
    set_principal(Principal("ann", "user", frozenset({Role.SCIENTIST})))
    set_deadline(20)
    begin_request({})
    interceptors = credentials_interceptors(ServiceTokens(site.gateway, "toy"), delegate=True)
    async with connected(toy, site.auth, interceptors=interceptors) as (_, channel):
        subject, actor, remaining, trace_id = json.loads(
            (await call(channel, kind, do("tell")))[-1].display_name
        )

    assert (subject, actor, trace_id) == ("ann", "gateway", current_trace_id())
    assert 15 < remaining < 20


async def test_log_lines_name_the_job_of_a_jobs_token(toy: Toy, site: Site) -> None:
    token = site.trainer.mint("jobs/7f", "job", ttl_seconds=60, audience="toy", job_id="7f", lease_epoch=1)
    jobs = {f"/{NAME}/*": Policy(kinds=frozenset({"job"}))}
    interceptors = credentials_interceptors(lambda: token)
    async with connected(toy, site.auth, jobs, interceptors=interceptors) as (_, channel):
        assert (await call(channel, "One", do("tell the job")))[0].display_name == "7f"


async def test_a_service_without_a_caller_calls_for_itself(toy: Toy, site: Site) -> None:
    interceptors = credentials_interceptors(ServiceTokens(site.gateway), delegate=True)
    async with connected(toy, site.auth, interceptors=interceptors) as (_, channel):
        subject, actor, *_ = json.loads((await call(channel, "One", do("tell")))[0].display_name)

    assert (subject, actor) == ("gateway", None)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_service_that_delegates_calls_for_users_and_guests_only(
    toy: Toy, site: Site, kind: str
) -> None:
    others: tuple[Kind, ...] = ("service", "worker", "job")
    interceptors = credentials_interceptors(ServiceTokens(site.gateway), delegate=True)
    async with connected(toy, site.auth, interceptors=interceptors) as (_, channel):
        for other in others:
            set_principal(Principal("a", other))
            with pytest.raises(PermissionDenied, match=f"acts for a {other}"):
                await call(channel, kind, do("tell"))


async def test_only_those_who_may_delegate_do(toy: Toy, site: Site) -> None:
    set_principal(Principal("ann", "user", frozenset({Role.ADMIN})))
    interceptors = credentials_interceptors(ServiceTokens(site.trainer), delegate=True)
    async with connected(toy, site.auth, interceptors=interceptors) as (_, channel):
        with pytest.raises(Unauthenticated):
            await call(channel, "One", do("tell"))


async def test_a_token_for_another_service_is_refused(toy: Toy, site: Site) -> None:
    interceptors = credentials_interceptors(ServiceTokens(site.trainer, "storage"))
    async with connected(toy, site.auth, interceptors=interceptors) as (_, channel):
        with pytest.raises(Unauthenticated):
            await call(channel, "One", do("tell"))


async def test_a_call_with_its_own_credential_keeps_it(toy: Toy, site: Site) -> None:
    set_principal(Principal("ann", "user", frozenset({Role.ADMIN})))
    interceptors = credentials_interceptors(ServiceTokens(site.gateway), delegate=True)
    own = (("authorization", f"Bearer {site.trainer.mint('trainer', 'service', ttl_seconds=60)}"),)
    async with connected(toy, site.auth, interceptors=interceptors) as (_, channel):
        subject, *_ = json.loads((await call(channel, "One", do("tell"), metadata=own))[0].display_name)

    assert subject == "trainer"


@pytest.mark.parametrize("kind", KINDS)
async def test_without_time_left_no_other_service_is_called(toy: Toy, site: Site, kind: str) -> None:
    set_deadline(0.0)
    interceptors = credentials_interceptors(ServiceTokens(site.gateway))
    async with connected(toy, site.auth, interceptors=interceptors) as (_, channel):
        with pytest.raises(DeadlineExceeded, match="no time is left"):
            await call(channel, kind, do("a"))


async def test_health_says_what_it_was_told(toy: Toy) -> None:
    async with (
        serving(toy) as (server, port),
        open_to(port) as channel,
    ):
        await server.set_serving(NAME, False)
        stub = health_pb2_grpc.HealthStub(channel)

        own = await stub.Check(health_pb2.HealthCheckRequest(service=NAME))
        process = await stub.Check(health_pb2.HealthCheckRequest())

    assert own.status == health_pb2.HealthCheckResponse.NOT_SERVING
    assert process.status == health_pb2.HealthCheckResponse.SERVING


async def test_health_that_was_set_before_the_start_counts_from_the_first_moment(toy: Toy) -> None:
    server = GrpcServer(
        GrpcSettings(),
        [Service(NAME, lambda servicer, target: servicer.register(servicer, target), toy)],
        Authenticator(AuthSettings(), "toy"),
        ANYBODY,
    )
    await server.set_serving(NAME, False)
    port = await server.start()
    async with open_to(port) as channel:
        answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=NAME))
    await server.stop()

    assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING


async def test_a_taken_port_is_a_clear_error(toy: Toy) -> None:
    async with serving(toy) as (_, port):
        with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{port}"):
            async with serving(Toy(), port=port):
                pass


async def test_stopping_lets_a_running_call_finish_and_takes_no_new_one(toy: Toy) -> None:
    release = asyncio.Event()

    async def one(request: SubmitJobRequest, context: Any) -> Job:
        toy.started.set()
        await release.wait()
        return Job(name="finished")

    toy.one = one  # type: ignore[method-assign]
    async with connected(toy, drain_seconds=20) as (server, channel):
        running = asyncio.create_task(call(channel, "One", do("a")))
        await toy.started.wait()
        stopping = asyncio.create_task(server.stop())
        await server.draining.wait()
        # gRPC cancels what arrives in the very moment of the stop, and answers UNAVAILABLE afterwards.
        with pytest.raises((Unavailable, Cancelled)):
            await call(channel, "Many", do("a"), timeout=2)

        release.set()

        assert (await running)[0].name == "finished"
        await asyncio.wait_for(stopping, 5)


async def test_calls_that_are_cut_off_clear_away_before_the_end(toy: Toy) -> None:
    cleared = False

    async def one(request: SubmitJobRequest, context: Any) -> Job:
        nonlocal cleared
        toy.started.set()
        try:
            await asyncio.Event().wait()
        finally:
            for _ in range(1000):
                await asyncio.sleep(0)
            cleared = True
        raise AssertionError

    toy.one = one  # type: ignore[method-assign]
    async with connected(toy, drain_seconds=0.1) as (server, channel):
        running = asyncio.create_task(call(channel, "One", do("a")))
        await toy.started.wait()
        await server.stop()
        assert cleared
        with pytest.raises(AppError):
            await running


async def test_stopping_ends_what_does_not_end_by_itself(toy: Toy) -> None:
    async with connected(toy, drain_seconds=0.1) as (server, channel):
        running = asyncio.create_task(call(channel, "One", do("sleep")))
        await toy.started.wait()

        await asyncio.wait_for(server.stop(), 5)

        assert toy.cleaned.is_set()
        with pytest.raises(AppError):
            await running


@pytest.mark.parametrize("idempotent", [f"{NAME}/One", NAME])
async def test_what_may_be_repeated_is_asked_again_when_the_server_was_away(
    toy: Toy, idempotent: str
) -> None:
    calls = 0

    async def one(request: SubmitJobRequest, context: Any) -> Job:
        nonlocal calls
        calls += 1
        if calls < 3:
            raise Unavailable("not yet")
        return Job(name="at last")

    toy.one = one  # type: ignore[method-assign]
    async with serving(toy) as (_, port):
        settings = ChannelSettings(target=f"127.0.0.1:{port}")
        async with open_channel(settings, idempotent=[idempotent]) as patient:
            assert (await call(patient, "One", do("a")))[0].name == "at last"
        calls = 0
        async with open_channel(settings) as impatient:
            with pytest.raises(Unavailable, match="not yet"):
                await call(impatient, "One", do("a"))
    assert calls == 1


async def test_watching_health_does_not_hold_up_the_end(toy: Toy) -> None:
    async with connected(toy, drain_seconds=60) as (server, channel):
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=NAME))
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING

        await asyncio.wait_for(server.stop(), 5)

        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert await watch.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_server_ends_when_it_is_told_to(tmp_path: Path) -> None:
    program = textwrap.dedent("""
        import asyncio, sys
        from guidehall.core.auth import Authenticator
        from guidehall.core.grpc_server import GrpcServer, until_signalled
        from guidehall.core.settings import AuthSettings, GrpcSettings

        async def main():
            server = GrpcServer(GrpcSettings(), [], Authenticator(AuthSettings(), "toy"), {})
            port = await server.start()
            asked = asyncio.create_task(until_signalled())
            await asyncio.sleep(0)
            print(port, flush=True)
            await asked
            await server.stop()
            print("stopped", flush=True)

        asyncio.run(main())
    """)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE, env=dict(os.environ)
    )
    assert process.stdout is not None
    async with asyncio.timeout(20):
        port = int(await process.stdout.readline())
        assert port > 0

        process.send_signal(signal.SIGTERM)

        assert await process.stdout.readline() == b"stopped\n"
        assert await process.wait() == 0
