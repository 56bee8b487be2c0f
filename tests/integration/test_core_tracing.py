"""Spans on their way to a collector."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

PROGRAM = """
import sys
from guidehall.core.settings import TelemetrySettings
from guidehall.core.telemetry import begin_request, configure_tracing, end_request
configure_tracing(TelemetrySettings(otlp_endpoint=sys.argv[1], export_seconds=0.5), "toy")
begin_request({"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}, "/a.B/C")
end_request()
"""


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps what it is sent."""

    def __init__(self) -> None:
        self.requests: asyncio.Queue[trace_service_pb2.ExportTraceServiceRequest] = asyncio.Queue()

    async def Export(  # noqa: N802 (the protocol names it)
        self, request: trace_service_pb2.ExportTraceServiceRequest, _: object
    ) -> trace_service_pb2.ExportTraceServiceResponse:
        self.requests.put_nowait(request)
        return trace_service_pb2.ExportTraceServiceResponse()


@pytest.fixture
async def collector() -> AsyncIterator[tuple[Collector, str]]:
    server = grpc.aio.server()
    kept = Collector()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(kept, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield kept, f"http://127.0.0.1:{port}"
    await server.stop(0)


async def run(endpoint: str) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PROGRAM, endpoint, stderr=asyncio.subprocess.DEVNULL
    )
    assert await process.wait() == 0


async def test_a_span_reaches_the_collector(collector: tuple[Collector, str]) -> None:
    kept, endpoint = collector

    await asyncio.wait_for(run(endpoint), 20)

    (resource,) = (await asyncio.wait_for(kept.requests.get(), 5)).resource_spans
    names = {item.key: item.value.string_value for item in resource.resource.attributes}
    assert names["service.name"] == "guidehall-toy"
    (span,) = resource.scope_spans[0].spans
    assert (span.name, span.trace_id.hex()) == ("/a.B/C", "0af7651916cd43dd8448eb211c80319c")


@pytest.mark.slow
async def test_a_collector_that_is_away_does_not_hold_up_the_end() -> None:
    # Importing the exporter takes most of the time; without a bound the end would wait ten seconds more.
    await asyncio.wait_for(run("http://127.0.0.1:1"), 6)
