"""Which proxy the environment says to use: ``HTTP_PROXY``, ``HTTPS_PROXY``, ``ALL_PROXY`` and ``NO_PROXY``."""

from __future__ import annotations

import base64
from contextlib import suppress
from ipaddress import ip_address, ip_network
from typing import NamedTuple
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

__all__ = ["Proxy", "proxy_for"]

_PORTS = {"http": 80, "https": 443, "socks4": 1080, "socks4a": 1080, "socks5": 1080, "socks5h": 1080}


class Proxy(NamedTuple):
    """A proxy's address, and who one is there."""

    scheme: str
    host: str
    port: int
    user: str = ""
    password: str = ""

    def __str__(self) -> str:
        """Its address, without a password."""
        return f"{self.scheme}://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"

    @property
    def socks(self) -> bool:
        """Whether it speaks SOCKS, and not HTTP."""
        return self.scheme.startswith("socks")

    @property
    def authorization(self) -> dict[str, str]:
        """The header that says who one is (RFC 7617), if anything does."""
        if not (self.user or self.password):
            return {}
        pair = base64.b64encode(f"{self.user}:{self.password}".encode()).decode()
        return {"proxy-authorization": f"Basic {pair}"}


def proxy_for(scheme: str, host: str, port: int) -> Proxy | None:
    """The proxy for an endpoint, or ``None`` where it is asked directly.

    Variables are read in lower case first. What ``NO_PROXY`` lists may be a host, a domain, ``host:port``, ``*``, or an
    address range such as ``10.0.0.0/8``. On macOS and Windows the system's settings count where no variable is set.

    Raises
    ------
    ValueError
        The variable holds no proxy's URL. The text holds no secret.
    """
    found = getproxies()
    name = scheme if scheme in found else "all"
    if name not in found or _bypassed(host, port, found.get("no", "")):
        return None
    proxy = _parsed(found[name])
    if proxy is None:
        raise ValueError(
            f"{name.upper()}_PROXY holds no proxy's URL: expected something like http://proxy.example.com:3128, with "
            f"one of {', '.join(_PORTS)}"
        )
    return proxy


def _parsed(url: str) -> Proxy | None:
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        host, port = parts.hostname, parts.port
    except ValueError:
        return None
    if not host or parts.scheme not in _PORTS:
        return None
    return Proxy(
        parts.scheme, host, port or _PORTS[parts.scheme], unquote(parts.username or ""), unquote(parts.password or "")
    )


def _bypassed(host: str, port: int, listed: str) -> bool:
    if proxy_bypass(f"[{host}]:{port}" if ":" in host else f"{host}:{port}"):
        return True
    try:
        address = ip_address(host)
    except ValueError:
        return False
    for name in listed.split(","):  # ranges, which the standard library does not know
        with suppress(ValueError):
            if address in ip_network(name.strip(), strict=False):
                return True
    return False
