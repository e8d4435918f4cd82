"""Whose certificates are accepted: the system's authorities, and those in the files that the user names.

A deployment's ``ca_bundle``, ``SSL_CERT_FILE`` (of OpenSSL), ``REQUESTS_CA_BUNDLE`` and ``CURL_CA_BUNDLE`` (those
of requests and curl) each name a file with further authorities, or a folder of them (``SSL_CERT_DIR``, too).
"""

from __future__ import annotations

import os
import ssl
import sys
from functools import lru_cache

__all__ = ["client_context"]

# Where Linux distributions keep their authorities, for a Python whose OpenSSL was built to look elsewhere: Debian,
# Fedora and Red Hat, SUSE, Alpine.
_BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)


VARIABLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")


def client_context(ca_bundle: str | None = None) -> ssl.SSLContext:
    """The settings of every TLS connection: certificate and host name are verified, HTTP/1.1 is asked for.

    Parameters
    ----------
    ca_bundle
        A file or a folder with the authorities of one deployment.

    Raises
    ------
    ValueError
        ``ca_bundle``, or one of the variables, names no file of certificates.
    """
    named = [("ca_bundle", ca_bundle), *((name, os.environ.get(name)) for name in VARIABLES)]
    found = tuple((by, os.path.expanduser(path)) for by, path in named if path)
    return _context(found, os.environ.get("SSL_CERT_DIR"))


@lru_cache(maxsize=64)  # reading the authorities takes some 10 ms, and a job may have hundreds of deployments
def _context(named: tuple[tuple[str, str], ...], folder: str | None) -> ssl.SSLContext:
    context = _system_context()
    for by, path in named:
        try:
            if os.path.isdir(path):
                context.load_verify_locations(capath=path)
            else:
                context.load_verify_locations(path)
        except OSError as error:  # which includes what OpenSSL says of a file that holds none
            said = "no certificates in it" if isinstance(error, ssl.SSLError) else error.strerror
            raise ValueError(f"{by} names {path}: {said}") from None
    context.set_alpn_protocols(["http/1.1"])
    return context


def _system_context() -> ssl.SSLContext:
    if sys.platform in ("darwin", "win32"):
        # There the system itself decides, by its own store, which OpenSSL does not read.
        import truststore

        return truststore.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context = ssl.create_default_context()
    paths = ssl.get_default_verify_paths()
    if os.path.isfile(paths.openssl_cafile):
        context.load_verify_locations(paths.openssl_cafile)  # SSL_CERT_FILE adds to it, and does not replace it
    elif not _holds_certificates(paths.openssl_capath):
        context.load_verify_locations(next(filter(os.path.isfile, _BUNDLES), None) or _bundled())
    return context


def _holds_certificates(folder: str) -> bool:
    """Whether there are certificates under the names by which OpenSSL looks them up."""
    try:
        return any(name.endswith(".0") for name in os.listdir(folder))
    except OSError:
        return False


def _bundled() -> str:
    """Mozilla's authorities, for a system that has none."""
    import certifi

    return certifi.where()
