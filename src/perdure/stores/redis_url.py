"""The URL of a store in Redis or Valkey: what is ours in it, what is the driver's, and how it is shown to people.

A password is never shown, nor is anything of a URL that cannot be told apart: one with a sign in it that should have
been percent-encoded makes parts of it look like a port, a path or the name of a parameter.
"""

from __future__ import annotations

import re
from urllib.parse import parse_qsl, urlencode, urlsplit

import msgspec

from perdure.errors import ConfigError
from perdure.model import printable
from perdure.stores.expiring import LEASE, lease_of, masked, seconds

_SCHEMES = {"redis": "redis", "valkey": "redis", "rediss": "rediss", "valkeys": "rediss"}
_DRIVERS = {"db", "username", "password", "client_name", "socket_keepalive", "health_check_interval"}
"""parameters that redis-py takes; those that would change what the store counts on (retries, decoding) are not here"""
_TLS = {"cert_reqs", "ca_certs", "ca_path", "ca_data", "certfile", "keyfile", "password", "check_hostname"}
_PREFIX = re.compile(r"[A-Za-z0-9_.:-]{1,64}")
_ANSWERS = {"yes": True, "no": False}
_DEFAULTS = {"prefix": "perdure", "lease": LEASE, "waitaof": "no", "socket_timeout": "5", "socket_connect_timeout": "5"}


class Target(msgspec.Struct, frozen=True):
    """Which store, and how to reach it."""

    url: str
    """for the driver, password included"""
    shown: str
    """for people"""
    prefix: str
    """of all its keys"""
    lease: float
    """seconds within which the runs of a dead handle are free"""
    waitaof: bool
    """whether each write is to wait for the append-only file"""
    answer: float
    """seconds that an answer may take"""
    connect: float
    """seconds that a connection may take"""


def target(url: str) -> Target:
    """What a URL says. Raises ConfigError, naming the parameter that is wrong."""
    try:
        parts = urlsplit(url)
        whole = (parts.port is None or parts.hostname is not None) and printable(url)
    except ValueError:  # it may quote the password
        whole = False
    if not whole or parts.fragment or not re.fullmatch(r"/?\d*", parts.path):
        raise ConfigError(
            "The URL of the store has no form redis://user:password@host:port/number?parameter=value.",
            hint="In a password write %23 for '#', %2F for '/', %3A for ':', %3F for '?', %40 for '@'.",
        )
    scheme = _SCHEMES.get(parts.scheme)
    if scheme is None:
        raise ConfigError(f"{parts.scheme[:40]!r} is no store in Redis.", hint=f"Use one of {', '.join(_SCHEMES)}.")
    given = _parameters(parts.query, scheme == "rediss")
    ours = {name: given.pop(name, default) for name, default in _DEFAULTS.items()}
    user, at, place = parts.netloc.rpartition("@")
    hidden = ["***" if name.endswith("password") else value for name, value in given.items()]
    named = {name: value for name, value in ours.items() if value != _DEFAULTS[name]}
    return Target(
        url=f"{scheme}://{parts.netloc}{parts.path}?{urlencode(given)}",
        shown=f"{parts.scheme}://{masked(user)}{at}{place}{parts.path}"
        + _query(dict(zip(given, hidden, strict=True)) | named),
        prefix=_prefix(ours["prefix"]),
        lease=lease_of(ours["lease"]),
        waitaof=_yes("waitaof", ours["waitaof"]),
        answer=seconds("socket_timeout", ours["socket_timeout"], 0.1, 60.0),
        connect=seconds("socket_connect_timeout", ours["socket_connect_timeout"], 0.1, 60.0),
    )


def _parameters(query: str, tls: bool) -> dict[str, str]:
    known = {*_DEFAULTS, *_DRIVERS, *((f"ssl_{name}" for name in _TLS) if tls else ())}
    found: dict[str, str] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in known or name in found:
            shown = repr(name) if re.fullmatch(r"[a-z_]{1,40}", name) else "one of them"
            wrong = "given twice" if name in found else "not known"
            raise ConfigError(
                f"The parameters of the store's URL: {shown} is {wrong}.", hint=f"Known are {', '.join(sorted(known))}."
            )
        found[name] = value
    return found


def _query(parameters: dict[str, str]) -> str:
    return "?" + urlencode(parameters, safe="*:/") if parameters else ""


def _prefix(text: str) -> str:
    if not _PREFIX.fullmatch(text):
        raise ConfigError(
            f"The parameter prefix of the store's URL must be 1 to 64 letters, digits and signs of '_.:-', "
            f"not {text[:80]!r}."
        )
    return text


def _yes(name: str, text: str) -> bool:
    if text not in _ANSWERS:
        raise ConfigError(f"The parameter {name} of the store's URL must be yes or no, not {text[:80]!r}.")
    return _ANSWERS[text]
