"""Keys that would go over plain ``http://`` to a host that is not local, where everybody on the way can read them."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from functools import cache
from ipaddress import IPv6Address, ip_address, ip_network
from urllib.parse import urlsplit

from infermesh.redaction import origin

__all__ = ["is_local", "warn_of_exposed_keys"]

logger = logging.getLogger("infermesh")

_LOCAL_NETWORKS = tuple(
    ip_network(network)
    for network in (
        *("0.0.0.0/32", "127.0.0.0/8", "::/128", "::1/128"),  # this machine
        *("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7"),  # RFC 1918, RFC 4193
        *("169.254.0.0/16", "fe80::/10"),  # RFC 3927, RFC 4291: this link
        "100.64.0.0/10",  # RFC 6598; overlay networks use it, and encrypt
    )
)
# RFC 6761, 6762 with its appendix G, 8375, ICANN's .internal; a Kubernetes service without its cluster's domain.
_LOCAL_ENDINGS = (
    *(".localhost", ".local", ".localdomain", ".internal", ".home.arpa", ".svc"),
    *(".intranet", ".private", ".corp", ".home", ".lan"),
)
# What people write where a server wants no key.
_NO_KEYS = frozenset(("", "-", "x", "none", "null", "empty", "dummy", "no-key", "not-needed", "sk-no-key-required"))


def is_local(host: str) -> bool:
    """Whether a host is this machine or in a private network, as far as its name or address tells.

    Examples
    --------
    >>> is_local("10.0.0.7"), is_local("gpu-3"), is_local("gpu.example.com")
    (True, True, False)
    """
    host = host.lower().rstrip(".").partition("%")[0]
    try:
        address = ip_address(host)
    except ValueError:
        return "." not in host or host.endswith(_LOCAL_ENDINGS)
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return any(address in network for network in _LOCAL_NETWORKS)


def warn_of_exposed_keys(label: str, api_base: str | None, secrets: Iterable[str | None]) -> None:
    """Say once for a deployment that a key of it can be read on the way; says nothing where there is none."""
    if api_base is None or not api_base.lower().startswith("http://"):
        return
    try:
        parts = urlsplit(api_base)
        host, password = parts.hostname or "", parts.password
    except ValueError:
        return
    keyed = any(secret.lower() not in _NO_KEYS for secret in (*secrets, password) if secret)
    if keyed and not is_local(host):
        _warn(label, origin(api_base))


@cache
def _warn(label: str, place: str) -> None:
    logger.warning(
        "%s: its key goes to %s unencrypted, and whoever is on the way can read it: use https://, or a tunnel "
        "(ssh -L) and a local api_base",
        *(label, place),
    )
