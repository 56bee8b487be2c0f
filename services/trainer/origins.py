"""Where a URL leads: the part of it that an operator allows or does not."""

from __future__ import annotations

from urllib.parse import SplitResult, urlsplit

_LONGEST_URL = 2000
_DEFAULT_PORTS = {"http": 80, "https": 443}


def origin(url: str) -> str | None:
    """Scheme, host and, unless it is the usual one, port of a URL; None for what is no plain http(s) URL."""
    if len(url) > _LONGEST_URL or not url.isascii() or not url.isprintable() or set(url) & set(' "<>\\'):
        return None
    try:
        parts = urlsplit(url)
        port = port_of(parts)
    except ValueError:
        return None
    if parts.scheme not in _DEFAULT_PORTS or not parts.hostname or "@" in parts.netloc:
        return None
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}" + ("" if port == _DEFAULT_PORTS[parts.scheme] else f":{port}")


def port_of(parts: SplitResult) -> int:
    """The port that a URL means."""
    return parts.port or _DEFAULT_PORTS.get(parts.scheme, 0)
