"""The least that a gateway can be: a FastAPI app that makes one empty call over gRPC for each request.

`python -m benchmarks.gateway.peer` serves HTTP, prints its port, and ends with its standard input.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from multiprocessing.connection import Connection

import grpc.aio
import uvicorn
from fastapi import FastAPI
from google.protobuf.empty_pb2 import Empty
from starlette.requests import Request

METHOD = "/benchmarks.Hop/Nothing"
HOST = "127.0.0.1"


def serve_nothing(told: Connection) -> None:
    """The server behind it, in a process of its own."""

    async def serve() -> None:
        async def nothing(request: Empty, _: object) -> Empty:
            return request

        handler = grpc.unary_unary_rpc_method_handler(
            nothing, request_deserializer=Empty.FromString, response_serializer=Empty.SerializeToString
        )
        server = grpc.aio.server()
        service, _, method = METHOD[1:].partition("/")
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
        told.send(server.add_insecure_port(f"{HOST}:0"))
        await server.start()
        await server.wait_for_termination()

    asyncio.run(serve())


def app(target: str) -> FastAPI:
    """One route, one call."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with grpc.aio.insecure_channel(target) as channel:
            app.state.call = channel.unary_unary(
                METHOD, request_serializer=Empty.SerializeToString, response_deserializer=Empty.FromString
            )
            yield

    made = FastAPI(lifespan=lifespan)

    @made.get("/")
    async def hop(request: Request) -> dict[str, str]:
        await request.app.state.call(Empty())
        return {"status": "ok"}

    return made


async def _main(target: str) -> None:
    with socket.create_server((HOST, 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app(target), log_level="warning"))
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        print(listener.getsockname()[1], flush=True)
        await asyncio.to_thread(sys.stdin.read)
        server.should_exit = True
        await serving


if __name__ == "__main__":
    # gRPC must not be forked.
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=serve_nothing, args=(there,), daemon=True)
    process.start()
    asyncio.run(_main(f"{HOST}:{here.recv()}"))
    process.terminate()
