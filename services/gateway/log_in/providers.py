"""Providers: where a browser is sent, and who the provider says came back."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import time
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import urlencode, urlsplit

from guidehall.core.errors import Unauthenticated, Unavailable
from services.gateway.log_in import id_tokens
from services.gateway.log_in.fetch import Fetcher
from services.gateway.log_in.settings import LogInSettings, ProviderSettings, is_loopback, is_safe

# Nobody asks a provider again so soon that has just not described itself.
_SILENT_SECONDS = 5.0


@dataclass(frozen=True)
class Attempt:
    """One log-in on its way to the provider and back.

    Attributes:
        state: comes back with the browser.
        nonce: comes back in the ID token.
        verifier: of PKCE, by which the provider knows that the code went to who began (RFC 7636).
        redirect_uri: where the browser comes back to.
    """

    state: str
    nonce: str
    verifier: str
    redirect_uri: str

    def query(self, settings: ProviderSettings, scopes: tuple[str, ...]) -> dict[str, str]:
        """Parameters of the provider's page."""
        digest = hashlib.sha256(self.verifier.encode()).digest()
        return {
            "response_type": "code",
            "client_id": settings.client_id,
            "redirect_uri": self.redirect_uri,
            "scope": " ".join(settings.scopes or scopes),
            "state": self.state,
            "code_challenge": base64.urlsafe_b64encode(digest).decode("ascii").rstrip("="),
            "code_challenge_method": "S256",
        }

    def form(self, settings: ProviderSettings, code: str) -> dict[str, str]:
        """What the code is exchanged with."""
        return {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": self.redirect_uri,
            "client_id": settings.client_id,
            "code_verifier": self.verifier,
        }


@dataclass(frozen=True)
class Person:
    """Who came back, as the provider says."""

    subject: str
    username: str = ""
    display_name: str = ""
    verified_email: str = ""
    groups: tuple[str, ...] = ()


class Provider(Protocol):
    """One of either kind."""

    settings: ProviderSettings

    async def page(self, attempt: Attempt) -> str:
        """Address of the provider's page.

        Raises:
            Unavailable: the provider does not answer.
        """

    async def person(self, attempt: Attempt, code: str, issuer: str | None) -> Person:
        """Who the code stands for.

        Args:
            attempt: that the code answers.
            code: from the browser.
            issuer: from the browser, where the provider sends it (RFC 9207).

        Raises:
            Unauthenticated: it stands for nobody, or what the provider says does not hold.
            Unavailable: the provider does not answer.
        """


def provider_of(settings: ProviderSettings, log_in: LogInSettings, fetch: Fetcher) -> Provider:
    """The provider that these settings describe."""
    return GitHub(settings, fetch) if settings.kind == "github" else OpenId(settings, log_in, fetch)


class OpenId:
    """An OpenID provider, by discovery."""

    _SCOPES = ("openid", "profile", "email")
    _ENDPOINTS = ("authorization_endpoint", "token_endpoint", "jwks_uri")

    def __init__(self, settings: ProviderSettings, log_in: LogInSettings, fetch: Fetcher) -> None:
        self.settings = settings
        self._fetch = fetch
        self._keep_seconds = log_in.keys_seconds
        self._keys = id_tokens.ProviderKeys(self._ask_keys, log_in.keys_seconds, log_in.keys_retry_seconds)
        self._described: dict[str, Any] = {}
        self._described_until = self._failed_until = 0.0
        self._lock = asyncio.Lock()

    async def page(self, attempt: Attempt) -> str:
        """Address of the provider's page."""
        described = await self._description()
        query = attempt.query(self.settings, self._SCOPES) | {"nonce": attempt.nonce}
        return _with_query(described["authorization_endpoint"], query)

    async def person(self, attempt: Attempt, code: str, issuer: str | None) -> Person:
        """Who the code stands for."""
        described = await self._description()
        if issuer is not None and issuer != self.settings.issuer:
            raise Unauthenticated("another provider has sent this answer", reason="WRONG_ISSUER")
        form, headers = attempt.form(self.settings, code), {}
        if self.settings.client_secret is not None:
            secret = self.settings.client_secret.get_secret_value()
            methods = described.get("token_endpoint_auth_methods_supported") or ["client_secret_basic"]
            if "client_secret_basic" in methods:
                headers = {"Authorization": _basic(self.settings.client_id, secret)}
            else:
                form["client_secret"] = secret
        status, answer = await self._fetch(described["token_endpoint"], form, headers)
        token = _accepted(status, answer).get("id_token")
        claims = await id_tokens.verify(
            token,
            self._keys,
            issuer=self.settings.issuer,
            client_id=self.settings.client_id,
            nonce=attempt.nonce,
        )
        groups = claims.get(self.settings.groups_claim, ())
        return Person(
            subject=str(claims["sub"]),
            username=_text(claims.get(self.settings.username_claim)),
            display_name=_text(claims.get("name")),
            verified_email=_text(claims.get("email")) if claims.get("email_verified") is True else "",
            groups=_texts(groups),
        )

    async def _ask_keys(self) -> Any:
        status, answer = await self._fetch((await self._description())["jwks_uri"])
        if status != 200:
            raise _unavailable("does not tell its keys")
        return answer

    async def _description(self) -> dict[str, Any]:
        """What the provider says about itself (OpenID Connect Discovery 1.0)."""
        async with self._lock:
            now = time.monotonic()
            if now < self._failed_until:
                # Those who wait for the lock must not each wait for an answer that does not come.
                raise _unavailable("did not answer a moment ago")
            if now >= self._described_until:
                self._failed_until = now + _SILENT_SECONDS
                issuer = self.settings.issuer
                url = issuer.rstrip("/") + "/.well-known/openid-configuration"
                status, described = await self._fetch(url)
                if status != 200 or not isinstance(described, dict) or described.get("issuer") != issuer:
                    raise _unavailable(f"does not describe itself as {issuer}")
                for name in self._ENDPOINTS:
                    if not _is_endpoint(described.get(name), issuer):
                        raise _unavailable(f"describes itself without a {name} over https")
                self._described = described
                self._described_until = time.monotonic() + self._keep_seconds
                self._failed_until = 0.0
            return self._described


class GitHub:
    """GitHub, or a GitHub server of one's own: OAuth 2 without ID tokens, so that its API says who came."""

    _SCOPES = ("read:user", "user:email", "read:org")
    _HEADERS = {"Accept": "application/vnd.github+json", "X-GitHub-Api-Version": "2022-11-28"}  # noqa: RUF012

    def __init__(self, settings: ProviderSettings, fetch: Fetcher) -> None:
        self.settings = settings
        self._fetch = fetch
        self._web = settings.issuer.rstrip("/")
        public = self._web == "https://github.com"
        self._api = "https://api.github.com" if public else f"{self._web}/api/v3"

    async def page(self, attempt: Attempt) -> str:
        """Address of GitHub's page."""
        return _with_query(f"{self._web}/login/oauth/authorize", attempt.query(self.settings, self._SCOPES))

    async def person(self, attempt: Attempt, code: str, issuer: str | None) -> Person:  # noqa: ARG002
        """Who the code stands for; the groups are the organisations."""
        form = attempt.form(self.settings, code)
        if self.settings.client_secret is not None:
            form["client_secret"] = self.settings.client_secret.get_secret_value()
        status, answer = await self._fetch(f"{self._web}/login/oauth/access_token", form)
        # GitHub refuses with status 200.
        token = _text(_accepted(status, answer).get("access_token"))
        if not token:
            raise _refused()
        user = await self._get("/user", token)
        if not isinstance(user, dict) or not isinstance(user.get("id"), int):
            raise _unavailable("does not say who logged in")
        scopes = self.settings.scopes or self._SCOPES
        emails = await self._get("/user/emails", token) if "user:email" in scopes else []
        organisations = await self._get("/user/orgs?per_page=100", token) if "read:org" in scopes else []
        return Person(
            subject=str(user["id"]),
            username=_text(user.get("login")),
            display_name=_text(user.get("name")),
            verified_email=next(
                (
                    _text(item.get("email"))
                    for item in _objects(emails)
                    if item.get("verified") is True and item.get("primary") is True
                ),
                "",
            ),
            groups=_texts([item.get("login") for item in _objects(organisations)]),
        )

    async def _get(self, path: str, token: str) -> Any:
        headers = {**self._HEADERS, "Authorization": f"Bearer {token}"}
        status, answer = await self._fetch(self._api + path, None, headers)
        if status != 200:
            raise _unavailable("does not say who logged in")
        return answer


def _is_endpoint(url: Any, issuer: str) -> bool:
    """Whether a provider may have us call there: over TLS, and not within our own network by its number,
    unless the provider itself is there."""
    if not isinstance(url, str) or not is_safe(url):
        return False
    host, own = urlsplit(url).hostname or "", urlsplit(issuer).hostname or ""
    return host == own or not (is_loopback(host) or host.replace(".", "").isdigit() or ":" in host)


def _with_query(url: str, query: dict[str, str]) -> str:
    return f"{url}{'&' if urlsplit(url).query else '?'}{urlencode(query)}"


def _basic(client_id: str, secret: str) -> str:
    """RFC 6749, 2.3.1: both halves are encoded like a form first."""
    halves = ":".join(urlencode({"": half}).removeprefix("=") for half in (client_id, secret))
    return "Basic " + base64.b64encode(halves.encode()).decode("ascii")


def _accepted(status: int, answer: Any) -> dict[str, Any]:
    """The answer to a code, where the provider takes it."""
    if status >= 500:
        raise _unavailable("cannot take the code")
    if status != 200 or not isinstance(answer, dict) or "error" in answer:
        raise _refused()
    return answer


def _refused() -> Unauthenticated:
    return Unauthenticated("the provider does not take the code; log in again", reason="BAD_CODE")


def _unavailable(what: str) -> Unavailable:
    return Unavailable(f"the provider {what}", reason="PROVIDER_UNAVAILABLE")


def _text(value: Any) -> str:
    # A lone half of a surrogate pair is no text that a message could hold.
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else ""


def _texts(values: Any) -> tuple[str, ...]:
    return tuple(_text(item) for item in values if isinstance(item, str)) if isinstance(values, list) else ()


def _objects(values: Any) -> list[dict[str, Any]]:
    return [item for item in values if isinstance(item, dict)] if isinstance(values, list) else []
