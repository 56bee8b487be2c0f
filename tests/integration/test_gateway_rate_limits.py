"""Limits that two gateways keep together."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import httpx
import pytest

from guidehall.core.auth import KeyPair, Role, TokenIssuer
from tests.fixtures.gateway import WAIT_SECONDS, Gateway
from tests.fixtures.storage import StorageSite

pytestmark = pytest.mark.slow

MOST = 3
SETTINGS = b"nr_predict_sld:\n  models:\n    num_epochs: 3\n"


@pytest.fixture
def site(own_storage: Callable[..., StorageSite]) -> StorageSite:
    site = own_storage()
    site.start()
    return site


@pytest.fixture
def gateways(site: StorageSite) -> Iterator[list[Gateway]]:
    settings = {"AUTH__MODE": "token", "STORAGE__TARGET": site.target, "LEGACY__UPLOAD_PER_MINUTE": MOST}
    with ExitStack() as stack:
        started = []
        for _ in range(2):
            gateway = Gateway(site.identity, **settings)
            stack.callback(gateway.stop)
            started.append(gateway)
        yield started


def upload(site: StorageSite, gateway: Gateway, subject: str) -> httpx.Response:
    issuer = TokenIssuer("storage", KeyPair.load(site.identity.key_file("storage")))
    token = issuer.mint(subject, "user", roles=[Role.SCIENTIST], ttl_seconds=3600)
    return httpx.post(
        f"http://127.0.0.1:{gateway.port}/api/upload",
        headers={"Authorization": f"Bearer {token}"},
        files=[("files", ("settings.yml", SETTINGS))],
        data={"roles": "auto"},
        timeout=WAIT_SECONDS,
    )


def test_one_caller_has_as_many_at_both_as_at_one(site: StorageSite, gateways: list[Gateway]) -> None:
    turns = itertools.cycle(gateways)
    for _ in range(MOST):
        answer = upload(site, next(turns), "ada")
        assert answer.status_code == 200, answer.text
    for gateway in gateways:
        refused = upload(site, gateway, "ada")
        assert refused.status_code == 429, refused.text
        assert f"allowed: {MOST}" in refused.text
        assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert upload(site, gateways[0], "bob").status_code == 200


def test_while_storage_is_away_each_counts_for_itself(site: StorageSite, gateways: list[Gateway]) -> None:
    site.stop()
    for gateway in gateways:
        statuses = [upload(site, gateway, "ada").status_code for _ in range(MOST + 1)]
        assert statuses == [503] * MOST + [429]
        gateway.wait_for("uploads: each gateway counts for itself")
