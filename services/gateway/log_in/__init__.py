"""Logging in by way of a provider that the gateway asks: OpenID Connect, or GitHub."""

from __future__ import annotations

import re
import secrets
from typing import Any

from guidehall.core.errors import InvalidArgument, NotFound, Unauthenticated
from services.gateway.log_in.fetch import Fetcher
from services.gateway.log_in.pending import Seal
from services.gateway.log_in.providers import Attempt, Person, Provider, provider_of
from services.gateway.log_in.settings import LogInSettings

_MAX_NEXT_CHARACTERS = 1000
_LOCAL_PATH = re.compile(r"/(?!/)[!-\[\]-~]*")
_BYTES = 32


class LogIns:
    """Log-ins at providers, from the browser's first step to its last.

    Args:
        settings: the providers.
        key: seals what the browser keeps meanwhile.
    """

    def __init__(self, settings: LogInSettings, key: bytes) -> None:
        self.settings = settings
        self._seal = Seal(key, "log-in")
        self.forms = Seal(key, "form")
        self._fetch = Fetcher(settings.call_seconds, settings.ca_file) if settings.providers else None
        self._providers: dict[str, Provider] = {}
        if self._fetch is not None:
            for name, provider in settings.providers.items():
                self._providers[name] = provider_of(provider, settings, self._fetch)

    async def begin(self, name: str, redirect_uri: str, then: str) -> tuple[str, str]:
        """The first step.

        Args:
            name: of the provider.
            redirect_uri: where the provider sends the browser.
            then: a path of the gateway, where it goes in the end.

        Returns:
            The address of the provider's page, and what the browser keeps.

        Raises:
            NotFound: there is no such provider.
            InvalidArgument: `then` leads elsewhere.
            Unavailable: the provider does not answer.
        """
        provider = self._provider(name)
        attempt = Attempt(
            secrets.token_urlsafe(_BYTES),
            secrets.token_urlsafe(_BYTES),
            secrets.token_urlsafe(_BYTES),
            redirect_uri,
        )
        kept = {"provider": name, "next": local_path(then), **vars(attempt)}
        return await provider.page(attempt), self._seal.close(kept)

    async def finish(
        self, name: str, kept: str, state: str, code: str, issuer: str | None
    ) -> tuple[Person, str]:
        """The last step: who came back, and where the browser goes.

        Raises:
            NotFound: there is no such provider.
            Unauthenticated: this browser did not begin it, or too long ago, or nobody is vouched for.
            Unavailable: the provider does not answer.
        """
        provider = self._provider(name)
        begun: dict[str, Any] | None = self._seal.open(kept, self.settings.pending_seconds)
        if (
            begun is None
            or begun.pop("provider") != name
            or not secrets.compare_digest(begun["state"].encode(), state.encode())
        ):
            raise Unauthenticated(
                "this browser has not begun this log-in, or too long ago; begin it again", reason="BAD_STATE"
            )
        then = str(begun.pop("next"))
        return await provider.person(Attempt(**begun), code, issuer), then

    def _provider(self, name: str) -> Provider:
        try:
            return self._providers[name]
        except KeyError:
            raise NotFound(f"there is no provider {name[:64]!r}", reason="UNKNOWN_PROVIDER") from None

    def close(self) -> None:
        """Ends the connections to providers."""
        if self._fetch is not None:
            self._fetch.close()


def local_path(text: str) -> str:
    """A path of the gateway with its query, as nothing else that a browser could take for an address.

    Raises:
        InvalidArgument: it is none.
    """
    if len(text) > _MAX_NEXT_CHARACTERS or not _LOCAL_PATH.fullmatch(text):
        raise InvalidArgument.field("next", text, "a path here, such as /docs")
    return text
