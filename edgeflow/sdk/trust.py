"""Whom an HTTP client of ours believes to be a PoP.

What it is: the system's authorities, read once per process, and only when an address is https: reading them takes longer than a call.
What it is not: the authority of the links between PoPs (edgeflow.cluster.tls).
What must stay true: no connection with TLS is made without somebody to believe; a client of an http address believes nobody.
"""

import ssl
from functools import cache

import httpx


def trusted(url: str) -> ssl.SSLContext:
    """For `verify` of an httpx client whose base is `url`."""
    return _authorities() if url.lower().startswith("https:") else _nobody()


@cache
def _authorities() -> ssl.SSLContext:
    return httpx.create_ssl_context(trust_env=False)


@cache
def _nobody() -> ssl.SSLContext:
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
