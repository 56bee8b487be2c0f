"""Logging in by way of a provider: what counts, what is refused, and who is who."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key

from guidehall.local.backing import BackingServers
from tests.fixtures.facility import Facility, facilities
from tests.fixtures.openid import CLIENT_ID, CLIENT_SECRET, OpenIdProvider, openid_provider

OTHER_KEY = generate_private_key(65537, 2048)
CSRF = {"X-Guidehall-CSRF": "1"}


@pytest.fixture(scope="module")
def providers() -> Iterator[dict[str, OpenIdProvider]]:
    with ExitStack() as stack:
        yield {name: stack.enter_context(openid_provider()) for name in ("facility", "strict", "github")}


@pytest.fixture(scope="module")
def facility(
    backing: BackingServers,
    tmp_path_factory: pytest.TempPathFactory,
    providers: dict[str, OpenIdProvider],
) -> Iterator[Facility]:
    told = {
        name: {
            "kind": "github" if name == "github" else "openid",
            "title": name.title(),
            "issuer": provider.url,
            "client_id": CLIENT_ID,
            "client_secret": CLIENT_SECRET,
        }
        for name, provider in providers.items()
    }
    # Two more that are one provider to storage's rules alone.
    told["closed"] = {**told["facility"], "title": ""}
    told["stranger"] = told["facility"]
    allowed = {
        "facility": {"groups": {"beamline-7": "films"}, "all_groups": False},
        "strict": {"allowed_groups": ["staff"], "allowed_domains": ["example.org"], "role": "VIEWER"},
        "github": {"all_groups": True},
        "closed": {"provisioning": False},
    }
    folder = tmp_path_factory.mktemp("facility")
    # A file, as a secret comes.
    (folder / "providers.json").write_text(json.dumps(told))
    gateway = {
        "LOG_IN__PROVIDERS_FILE": folder / "providers.json",
        "LOG_IN__KEYS_RETRY_SECONDS": 0,
        "LOG_IN__CALL_SECONDS": 2,
    }
    with facilities(backing, folder) as start:
        yield start(storage={"ACCOUNTS__PROVIDERS": json.dumps(allowed)}, gateway=gateway)


@pytest.fixture
def provider(providers: dict[str, OpenIdProvider]) -> OpenIdProvider:
    for each in providers.values():
        each.reset()
        each.claims = new_person()
    return providers["facility"]


@pytest.fixture
async def admin(facility: Facility) -> AsyncIterator[httpx.AsyncClient]:
    async with facility.admin() as client:
        yield client


@pytest.fixture
async def browser(facility: Facility) -> AsyncIterator[httpx.AsyncClient]:
    async with facility.http() as client:
        yield client


def new_person(**more: Any) -> dict[str, Any]:
    number = uuid.uuid4().int % 10**9
    return {"sub": str(number), "preferred_username": f"ada{number}", **more}


async def log_in(browser: httpx.AsyncClient, name: str = "facility", then: str = "/docs") -> httpx.Response:
    """All the steps, as a browser takes them."""
    path = f"/auth/oidc/{name}/login"
    return await browser.get(path, params={"next": then}, follow_redirects=True)


async def come_back(browser: httpx.AsyncClient, name: str = "facility") -> str:
    """Goes as far as the provider; the address to which it sends the browser."""
    begun = await browser.get(f"/auth/oidc/{name}/login")
    assert begun.status_code == 303, begun.text
    at_provider = await browser.get(begun.headers["location"])
    return str(at_provider.headers["location"])


async def who(browser: httpx.AsyncClient) -> dict[str, Any]:
    answer = await browser.get("/api/v1/whoami")
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def reason(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["reason"]


async def test_a_browser_logs_in_at_its_facility(
    facility: Facility, provider: OpenIdProvider, browser: httpx.AsyncClient
) -> None:
    provider.claims |= {"groups": ["beamline-7", "parking"], "name": "Ada", "email": "ada@example.org"}

    answer = await log_in(browser, then="/api/v1/whoami?of=me")

    assert answer.status_code == 200, answer.text
    assert str(answer.url) == f"{facility.url}/api/v1/whoami?of=me"
    name = provider.claims["preferred_username"]
    mine = answer.json()
    assert (mine["subject"], mine["roles"], mine["groups"]) == (name, ["SCIENTIST"], ["films"])
    assert {cookie.name for cookie in browser.cookies.jar} == {"guidehall_access", "guidehall_refresh"}
    cookies = [held for held in answer.history[-1].headers.get_list("set-cookie") if "guidehall_a" in held]
    assert all("HttpOnly" in held and "SameSite=lax" in held for held in cookies)
    assert cookies
    refreshed = await browser.post("/auth/refresh", headers=CSRF)
    assert refreshed.json()["session"]["method"] == "facility"
    assert (await who(browser))["groups"] == ["films"]
    user = (await browser.get(f"/api/v1/users/{name}")).json()
    # One that the provider has not checked is nobody's, and what it says of groups is kept in the session.
    assert (user["display_name"], user["email"], user["groups"]) == ("Ada", "", [])
    out = await browser.post("/auth/logout", headers=CSRF)
    assert out.status_code == 204


async def test_the_same_person_is_the_same_user(
    facility: Facility, provider: OpenIdProvider, browser: httpx.AsyncClient
) -> None:
    await log_in(browser)
    first = (await who(browser))["subject"]
    provider.claims["preferred_username"] = "somebody-else"
    async with facility.http() as other:
        await log_in(other)
        assert (await who(other))["subject"] == first


async def test_another_provider_with_the_same_name_and_address_is_somebody_else(
    facility: Facility,
    providers: dict[str, OpenIdProvider],
    provider: OpenIdProvider,
    browser: httpx.AsyncClient,
) -> None:
    provider.claims |= {"email": "ada@example.org", "email_verified": True}
    providers["github"].claims = dict(provider.claims)
    providers["github"].organisations = ["ornl"]
    await log_in(browser)
    mine = await who(browser)
    async with facility.http() as other:
        await log_in(other, "github")
        theirs = await who(other)
        told = (await other.get(f"/api/v1/users/{theirs['subject']}")).json()

    assert mine["subject"] == provider.claims["preferred_username"]
    assert theirs["subject"] == f"{mine['subject']}-github"
    assert theirs["groups"] == ["ornl"]
    assert told["email"] == "ada@example.org"


async def test_nobody_becomes_a_local_account_by_its_name(
    admin: httpx.AsyncClient, provider: OpenIdProvider, browser: httpx.AsyncClient
) -> None:
    name = provider.claims["preferred_username"]
    made = await admin.post(
        "/api/v1/users", json={"user_id": name, "roles": ["ADMIN"], "email": "a@example.org"}
    )
    assert made.status_code == 201
    provider.claims |= {"email": "a@example.org", "email_verified": True}

    await log_in(browser)

    mine = await who(browser)
    assert (mine["subject"], mine["roles"]) == (f"{name}-facility", ["SCIENTIST"])


@pytest.mark.parametrize("name", ["admin", "local", "Storage", "../../x", "", "ä"])
async def test_names_of_the_platform_are_not_given_away(
    name: str, provider: OpenIdProvider, browser: httpx.AsyncClient
) -> None:
    provider.claims["preferred_username"] = name
    await log_in(browser)
    assert (await who(browser))["subject"] not in ("admin", "local", "storage", name)


async def test_only_the_browser_that_began_comes_back(
    facility: Facility, provider: OpenIdProvider, browser: httpx.AsyncClient
) -> None:
    back = await come_back(browser)
    async with facility.http() as victim:
        assert reason(await victim.get(back)) == (401, "BAD_STATE")
        # Nor by a log-in of its own, which has another state.
        await come_back(victim)
        assert reason(await victim.get(back)) == (401, "BAD_STATE")
    query = parse_qs(urlsplit(back).query)
    altered = back.replace(query["state"][0], "x" * 43)
    assert reason(await browser.get(altered)) == (401, "BAD_STATE")
    # Once wrong, it is to be begun anew.
    assert reason(await browser.get(back)) == (401, "BAD_STATE")


async def test_an_answer_counts_once(provider: OpenIdProvider, browser: httpx.AsyncClient) -> None:
    begun = await browser.get("/auth/oidc/facility/login")
    kept = begun.headers["set-cookie"].split(";")[0]
    back = (await browser.get(begun.headers["location"])).headers["location"]
    assert (await browser.get(back)).status_code == 303

    assert reason(await browser.get(back)) == (401, "BAD_STATE")
    # With a copy of the cookie the provider still takes no code twice.
    assert reason(await browser.get(back, headers={"Cookie": kept})) == (401, "BAD_CODE")


async def test_an_answer_of_one_provider_is_none_of_another(
    provider: OpenIdProvider, browser: httpx.AsyncClient
) -> None:
    begun = await browser.get("/auth/oidc/facility/login")
    kept = begun.headers["set-cookie"].split(";")[0]
    back = (await browser.get(begun.headers["location"])).headers["location"]
    elsewhere = back.replace("/facility/", "/strict/")
    assert reason(await browser.get(elsewhere, headers={"Cookie": kept})) == (401, "BAD_STATE")
    mixed = f"{back}&iss=https%3A%2F%2Fevil.example"
    assert reason(await browser.get(mixed)) == (401, "WRONG_ISSUER")


def _unsigned(claims: dict[str, Any]) -> str:
    return jwt.encode(claims, None, algorithm="none")


def _parts(claims: dict[str, Any], header: dict[str, Any], key: bytes) -> str:
    # PyJWT would not sign with a public key as if it were a secret.
    def encode(value: bytes) -> str:
        return base64.urlsafe_b64encode(value).decode().rstrip("=")

    signed = f"{encode(json.dumps(header).encode())}.{encode(json.dumps(claims).encode())}"
    return f"{signed}.{encode(hmac.new(key, signed.encode(), hashlib.sha256).digest())}"


Wrong = Callable[[OpenIdProvider], None]
WRONG: dict[str, Wrong] = {
    "nonce": lambda provider: provider.alter.update(nonce="x"),
    "no nonce": lambda provider: provider.alter.update(nonce=None),
    "audience": lambda provider: provider.alter.update(aud="another"),
    "audiences": lambda provider: provider.alter.update(aud=[CLIENT_ID, "another"]),
    "authorized party": lambda provider: provider.alter.update(azp="another"),
    "issuer": lambda provider: provider.alter.update(iss="https://evil.example"),
    "expired": lambda provider: provider.alter.update(exp=time.time() - 60, iat=time.time() - 120),
    "no end": lambda provider: provider.alter.update(exp=None),
    "no subject": lambda provider: provider.alter.update(sub=None),
    "no signature": lambda provider: setattr(provider, "sign", _unsigned),
    "the public key as a secret": lambda provider: setattr(
        provider,
        "sign",
        lambda claims: _parts(claims, {"alg": "HS256", "kid": provider.kid}, provider.public_pem),
    ),
    "another key": lambda provider: setattr(
        provider,
        "sign",
        lambda claims: jwt.encode(claims, OTHER_KEY, algorithm="RS256", headers={"kid": provider.kid}),
    ),
    "an unknown key": lambda provider: setattr(
        provider,
        "sign",
        lambda claims: jwt.encode(claims, OTHER_KEY, algorithm="RS256", headers={"kid": "unknown"}),
    ),
    "its key in the token": lambda provider: setattr(
        provider,
        "sign",
        lambda claims: jwt.encode(
            claims,
            OTHER_KEY,
            algorithm="RS256",
            headers={"jwk": json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(OTHER_KEY.public_key()))},
        ),
    ),
    "no token": lambda provider: setattr(provider, "sign", lambda _: None),
    "nonsense": lambda provider: setattr(provider, "sign", lambda _: "a.b.c"),
}


@pytest.mark.parametrize("what", WRONG)
async def test_an_id_token_that_does_not_hold(
    what: str, provider: OpenIdProvider, browser: httpx.AsyncClient
) -> None:
    WRONG[what](provider)
    assert reason(await log_in(browser)) == (401, "BAD_ID_TOKEN")
    assert not list(browser.cookies.jar)
    # It was that alone.
    provider.alter, provider.sign = {}, None
    assert (await log_in(browser)).status_code == 200


async def test_a_provider_may_change_its_key(provider: OpenIdProvider, browser: httpx.AsyncClient) -> None:
    await log_in(browser)
    provider.rotate()
    before = provider.calls.count("/jwks")
    assert (await log_in(browser)).status_code == 200
    assert (await log_in(browser)).status_code == 200
    assert provider.calls.count("/jwks") == before + 1


async def test_a_provider_that_is_down_or_leads_elsewhere(
    facility: Facility, provider: OpenIdProvider, browser: httpx.AsyncClient
) -> None:
    back = await come_back(browser)
    provider.status = 503
    assert reason(await browser.get(back)) == (503, "PROVIDER_UNAVAILABLE")
    provider.status = 0
    back = await come_back(browser)
    # To a place that would log the browser in, were it followed.
    provider.redirect = f"{provider.url}/token"
    assert reason(await browser.get(back)) == (401, "BAD_CODE")
    provider.redirect = ""
    assert (await log_in(browser)).status_code == 200


@pytest.mark.parametrize(
    "then",
    ["https://evil.example", "//evil.example", "/\\evil.example", "\\/evil.example", "javascript:alert(1)",
     "docs", "", "/a\r\nSet-Cookie: a=b", "/\t/evil.example", "/ä"],
)  # fmt: skip
async def test_a_log_in_leads_nowhere_else(
    then: str, provider: OpenIdProvider, browser: httpx.AsyncClient
) -> None:
    answer = await browser.get("/auth/oidc/facility/login", params={"next": then})
    assert answer.status_code == 400
    assert not list(browser.cookies.jar)


async def test_who_is_disabled_stays_out(
    admin: httpx.AsyncClient, provider: OpenIdProvider, browser: httpx.AsyncClient
) -> None:
    await log_in(browser)
    user = (await who(browser))["subject"]
    done = await admin.patch(f"/api/v1/users/{user}", json={"disabled": True})
    assert done.status_code == 200

    assert reason(await browser.post("/auth/refresh", headers=CSRF)) == (401, "SESSION_ENDED")
    assert reason(await log_in(browser)) == (403, "USER_DISABLED")
    # A person is told in words.
    page = await browser.get(
        "/auth/oidc/facility/login", headers={"Accept": "text/html"}, follow_redirects=True
    )
    assert page.status_code == 403
    assert "is disabled" in page.text
    assert "default-src 'none'" in page.headers["content-security-policy"]


async def refusals(admin: httpx.AsyncClient) -> int:
    """How many log-ins by a provider the audit log has that were refused."""
    wanted = (
        'method = "/guidehall.identity.v1.LogInsService/LogInWithProvider" AND outcome = "PERMISSION_DENIED"'
    )
    found = await admin.get("/api/v1/audit", params={"filter": wanted, "page_size": 1000})
    assert found.status_code == 200, found.text
    return len(found.json()["events"])


async def test_storage_says_who_may_log_in(
    admin: httpx.AsyncClient,
    providers: dict[str, OpenIdProvider],
    provider: OpenIdProvider,
    browser: httpx.AsyncClient,
) -> None:
    strict = providers["strict"]
    before = await refusals(admin)
    assert reason(await log_in(browser, "strict")) == (403, "GROUP_NOT_ALLOWED")
    strict.claims["groups"] = ["staff"]
    assert reason(await log_in(browser, "strict")) == (403, "DOMAIN_NOT_ALLOWED")
    strict.claims["email"] = "ada@example.org"
    assert reason(await log_in(browser, "strict")) == (403, "DOMAIN_NOT_ALLOWED")
    assert await refusals(admin) == before + 3
    strict.claims["email_verified"] = True
    assert (await log_in(browser, "strict")).status_code == 200
    mine = await who(browser)
    assert (mine["roles"], mine["groups"]) == (["VIEWER"], [])
    assert reason(await log_in(browser, "stranger")) == (400, "UNKNOWN_PROVIDER")
    assert reason(await log_in(browser, "nobody")) == (404, "UNKNOWN_PROVIDER")


async def test_without_provisioning_an_administrator_links(
    admin: httpx.AsyncClient, provider: OpenIdProvider, browser: httpx.AsyncClient
) -> None:
    user, subject = f"eve-{uuid.uuid4().hex[:6]}", provider.claims["sub"]
    assert reason(await log_in(browser, "closed")) == (403, "IDENTITY_NOT_LINKED")
    await admin.post("/api/v1/users", json={"user_id": user, "roles": ["SCIENTIST"]})
    body = {"provider": "closed", "subject": subject}
    linked = await admin.post(f"/api/v1/users/{user}/identities", json=body)
    assert linked.status_code == 201, linked.text
    twice = await admin.post("/api/v1/users/eve/identities", json=body)
    assert twice.status_code == 404

    assert (await log_in(browser, "closed")).status_code == 200
    assert (await who(browser))["subject"] == user
    own = (await browser.get(f"/api/v1/users/{user}/identities")).json()["identities"]
    assert [(item["provider"], item["subject"]) for item in own] == [("closed", subject)]
    # Nobody links themselves.
    mine = await browser.post(f"/api/v1/users/{user}/identities", json=body, headers=CSRF)
    assert mine.status_code == 403

    gone = await admin.delete(f"/api/v1/{own[0]['name']}")

    assert gone.status_code == 204
    assert reason(await browser.post("/auth/refresh", headers=CSRF)) == (401, "SESSION_ENDED")
    assert reason(await log_in(browser, "closed")) == (403, "IDENTITY_NOT_LINKED")


async def test_two_first_log_ins_at_once_make_one_user(
    facility: Facility, provider: OpenIdProvider, admin: httpx.AsyncClient
) -> None:
    async with facility.http() as one, facility.http() as two, facility.http() as three:
        browsers = (one, two, three)
        backs = await asyncio.gather(*(come_back(browser) for browser in browsers))
        answers = await asyncio.gather(
            *(browser.get(back) for browser, back in zip(browsers, backs, strict=True))
        )
        assert {answer.status_code for answer in answers} <= {303, 409}
        names = set()
        for browser in browsers:
            await log_in(browser)
            names.add((await who(browser))["subject"])
    assert names == {provider.claims["preferred_username"]}


async def test_the_methods_name_the_providers(browser: httpx.AsyncClient) -> None:
    methods = (await browser.get("/auth/methods")).json()
    assert {"name": "github", "title": "Github", "kind": "github", "login": "/auth/oidc/github/login"} in (
        methods["providers"]
    )
    assert "secret" not in json.dumps(methods)
