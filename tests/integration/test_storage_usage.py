"""How much of storage is somebody's, how much may be, and calls that are limited in number."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
import pytest

from guidehall.contracts.identity.v1 import identity_pb2
from guidehall.contracts.usage.v1 import usage_pb2
from guidehall.core.auth import Role
from guidehall.core.errors import InvalidArgument, NotFound, PermissionDenied, ResourceExhausted
from tests.fixtures.storage import MIB, People, StorageSite, Stubs, weights
from tests.fixtures.trainer import refused


async def usage(stubs: Stubs, user: str = "") -> usage_pb2.Usage:
    return await stubs.usage.GetUsage(usage_pb2.GetUsageRequest(user=user))


async def admit(stubs: Stubs, caller: str, **changes: Any) -> identity_pb2.AdmitCallResponse:
    fields = {"caller": caller, "what": "uploads", "most": 3, "window_seconds": 60.0, **changes}
    return await stubs.identity.AdmitCall(identity_pb2.AdmitCallRequest(**fields))


async def test_what_is_stored_is_counted_by_kind_for_its_owner(people: People) -> None:
    ada, bob, film = people.user("ada"), people.user("bob"), weights()

    await ada.upload(people.name("curves"), bytes(range(100)))
    await ada.upload(people.name("curves"), bytes(range(50)))
    await ada.publish(people.name("film"), film)

    counted = await usage(ada)
    name = f"users/{people.name('ada')}"
    assert counted.user == name
    assert (counted.dataset_bytes, counted.model_bytes) == (150, len(film))
    assert counted.total_bytes == 150 + len(film)
    assert counted.allowed_bytes == 0
    assert (await usage(bob)).total_bytes == 0
    assert await usage(people.user("op", Role.OPERATOR), name) == counted
    async with refused(NotFound):
        await usage(bob, name)


@pytest.mark.slow
async def test_what_would_be_more_than_allowed_is_refused_and_not_kept(
    own_storage: Callable[..., StorageSite],
) -> None:
    site = own_storage(LIMITS__MAX_USER_BYTES=MIB)
    site.start()
    async with site.user("ada") as ada, site.user("bob") as bob:
        await ada.upload("a", bytes(MIB - 100))
        # Refused before its bytes come, and, where nobody says how many these are, after.
        for header in ({"size_bytes": 101}, {}):
            async with refused(ResourceExhausted) as errors:
                await ada.upload("b", bytes(101), **header)
            (error,) = errors
            assert error.reason == "QUOTA_EXCEEDED"
            assert f"{MIB - 100} are used and 101 more" in error.message
            assert error.metadata == {"used_bytes": str(MIB - 100), "allowed_bytes": str(MIB)}
        async with refused(ResourceExhausted):
            await ada.publish("film", weights(100))
        await bob.upload("c", bytes(101))
        await ada.upload("a", bytes(100))
        counted = await usage(ada)
        assert (counted.total_bytes, counted.allowed_bytes) == (MIB, MIB)
        assert len(await site.without_leaks()) == 3


@pytest.mark.slow
async def test_of_two_at_once_that_do_not_both_fit_one_is_kept(
    own_storage: Callable[..., StorageSite],
) -> None:
    site = own_storage(LIMITS__MAX_USER_BYTES=150)
    site.start()
    async with site.user("ada") as ada:
        ends = await asyncio.gather(
            *(ada.upload(f"d{number}", bytes(100)) for number in range(4)), return_exceptions=True
        )
        refusals = [end for end in ends if isinstance(end, grpc.aio.AioRpcError)]
        assert [error.code() for error in refusals] == [grpc.StatusCode.RESOURCE_EXHAUSTED] * 3
        assert (await usage(ada)).total_bytes == 100


async def test_calls_are_admitted_until_there_are_too_many_for_the_gateway_alone(people: People) -> None:
    gateway, caller = people.service("gateway"), f"user:{people.name('ada')}"

    answers = await asyncio.gather(*(admit(gateway, caller) for _ in range(5)))
    assert sorted(answer.admitted for answer in answers) == [False, False, True, True, True]
    assert all(answer.admitted or 0 < answer.retry_after_seconds <= 60 for answer in answers)
    assert (await admit(gateway, caller, what="submitted jobs")).admitted
    assert (await admit(gateway, f"user:{people.name('bob')}")).admitted
    async with refused(PermissionDenied):
        await admit(people.user("ada"), caller)
    for wrong in ({"most": 0}, {"window_seconds": 0.0}, {"window_seconds": float("nan")}, {"what": ""}):
        async with refused(InvalidArgument):
            await admit(gateway, caller, **wrong)


async def test_a_window_ends(people: People) -> None:
    gateway, caller = people.service("gateway"), f"user:{people.name('ada')}"
    assert (await admit(gateway, caller, most=1, window_seconds=0.001)).admitted
    assert (await admit(gateway, caller, most=1, window_seconds=0.001)).admitted
