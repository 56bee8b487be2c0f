"""The error tree: every kind survives the wire, and the wire is never overfilled."""

from __future__ import annotations

import subprocess
import sys

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from guidehall.core import errors
from guidehall.core.errors import (
    HTTP_STATUS,
    AppError,
    Code,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
    Violation,
    from_rpc_error,
    from_status,
    problem,
    to_status,
)

ALL = [*AppError.__subclasses__(), AppError]


def _failed_call(error: AppError, message: str | None = None) -> grpc.aio.AioRpcError:
    """What a client gets when a server raises `error`."""
    status = rpc_status.to_status(to_status(error))
    return grpc.aio.AioRpcError(
        code=status.code,
        initial_metadata=grpc.aio.Metadata(),
        trailing_metadata=grpc.aio.Metadata(*status.trailing_metadata),
        details=status.details if message is None else message,
    )


@pytest.mark.parametrize("cls", ALL)
def test_every_class_survives_a_call_with_all_it_carries(cls: type[AppError]) -> None:
    error = cls(
        "no",
        reason="SOME_REASON",
        metadata={"resource": "projects/default/jobs/1"},
        violations=[Violation("a.b[1]", "got -1; allowed: 0 or more")],
        retry_after_seconds=1.5,
    )

    back = from_rpc_error(_failed_call(error))

    assert type(back) is cls
    assert (back.message, back.reason, back.metadata) == (error.message, error.reason, error.metadata)
    assert (back.violations, back.retry_after_seconds) == (error.violations, error.retry_after_seconds)


def test_the_codes_are_grpcs_own() -> None:
    ours = {code.name: code.value for code in Code}

    assert ours == {code.name: code.value[0] for code in grpc.StatusCode if code is not grpc.StatusCode.OK}
    assert set(HTTP_STATUS) == set(Code)
    assert {cls.code for cls in ALL} == set(Code)


@pytest.mark.parametrize(
    ("error", "detail"),
    [
        (InvalidArgument("x", violations=[Violation("f", "d")]), error_details_pb2.BadRequest),
        (ResourceExhausted("x", violations=[Violation("f", "d")]), error_details_pb2.QuotaFailure),
        (FailedPrecondition("x", violations=[Violation("f", "d")]), error_details_pb2.PreconditionFailure),
    ],
)
def test_violations_travel_in_the_detail_that_fits_the_code(error: AppError, detail: type) -> None:
    assert [d.Is(detail.DESCRIPTOR) for d in to_status(error).details].count(True) == 1


def test_reason_defaults_to_the_code() -> None:
    assert NotFound("x").reason == "NOT_FOUND"
    assert from_status(to_status(NotFound("x"))).reason == "NOT_FOUND"


def test_a_field_is_refused_in_uniform_words_and_a_long_value_is_cut() -> None:
    error = InvalidArgument.field("q_min", "x" * 10_000_000, "a positive number")

    assert error.message.startswith("q_min: got 'xxx")
    assert error.message.endswith("; allowed: a positive number")
    assert len(error.message) < 200
    assert error.violations[0].field == "q_min"


def test_a_huge_error_still_fits_into_headers() -> None:
    error = InvalidArgument(
        "Å" * 100_000,
        metadata={"value": "σ" * 100_000},
        violations=[Violation(f"params.layers[{i}]", "×" * 100) for i in range(1000)],
    )

    status = rpc_status.to_status(to_status(error))

    header_bytes = len(dict(status.trailing_metadata)["grpc-status-details-bin"]) * 4 / 3
    message_bytes = len(status.details.encode()) * 3
    assert header_bytes + message_bytes < 8192
    assert 5 < len(from_rpc_error(_failed_call(error)).violations) < 1000


def test_a_server_that_cannot_be_reached_is_named_by_no_address() -> None:
    call = grpc.aio.AioRpcError(
        grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(), "connect 10.1.2.3:7101 refused"
    )

    error = from_rpc_error(call)

    assert isinstance(error, Unavailable)
    assert "10.1.2.3" not in error.message


@pytest.mark.parametrize("details", ["plain words", None])
def test_a_foreign_servers_error_keeps_its_code(details: str | None) -> None:
    call = grpc.aio.AioRpcError(grpc.StatusCode.NOT_FOUND, grpc.aio.Metadata(), grpc.aio.Metadata(), details)

    error = from_rpc_error(call)

    assert isinstance(error, NotFound)
    assert error.message == (details or "NOT_FOUND")


def test_details_that_contradict_the_call_do_not_count() -> None:
    error = from_rpc_error(_failed_call(NotFound("a", reason="R"), message="something else"))

    assert isinstance(error, NotFound)
    assert (error.message, error.reason) == ("something else", "NOT_FOUND")


def test_details_that_are_no_status_do_not_count() -> None:
    trailers = grpc.aio.Metadata(("grpc-status-details-bin", b"\xff\xff"))
    call = grpc.aio.AioRpcError(grpc.StatusCode.ABORTED, grpc.aio.Metadata(), trailers, "words")

    assert from_rpc_error(call).message == "words"


def test_an_error_without_a_call_is_of_unknown_code() -> None:
    assert from_rpc_error(grpc.RpcError()).code is Code.UNKNOWN


def test_problem_body() -> None:
    body = problem(
        NotFound("no such job", reason="NO_JOB", metadata={"a": "b"}),
        instance="/api/v1/jobs/1",
        trace_id="7f",
    )

    assert body == {
        "type": "about:blank",
        "title": "Not Found",
        "status": 404,
        "detail": "no such job",
        "instance": "/api/v1/jobs/1",
        "reason": "NO_JOB",
        "metadata": {"a": "b"},
        "violations": [],
        "trace_id": "7f",
    }
    assert all(problem(cls("x"), "/", None)["title"] for cls in ALL)


def test_the_tree_at_the_top_of_the_module_is_the_tree() -> None:
    assert errors.__doc__ is not None
    assert all(cls.__name__ in errors.__doc__ for cls in ALL)
    assert Internal.__mro__[1] is AppError


def test_the_import_is_light() -> None:
    code = (
        "import sys, guidehall.core.errors;"
        "heavy = {'pydantic', 'nats', 'sqlalchemy', 'prometheus_client', 'jwt'};"
        "print(sorted(heavy & set(sys.modules)))"
    )

    seen = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert seen.stdout.strip() == "[]"
