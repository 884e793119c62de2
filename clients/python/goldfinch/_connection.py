"""Channels, credentials and retries, shared by both clients."""

from __future__ import annotations

import ipaddress
import os
import pathlib
import random
import time
import urllib.parse
import urllib.request
from typing import Any, Dict, List, Optional, Tuple, Union

import grpc

from goldfinch import contexts_pb2
from goldfinch import generate_pb2 as pb

_PACKAGE = "/goldfinch.v1."
# Scored logits and the ids of long texts are larger than gRPC's own limit of 4 MiB.
_OPTIONS = [("grpc.max_receive_message_length", 256 << 20)]

_BACKOFF_SECONDS = 0.1  # doubles
_BACKOFF_SECONDS_MAX = 2.0

# The path of a PEM file, or its contents.
Pem = Union[str, "os.PathLike[str]", bytes]


def _read_pem(pem: Optional[Pem]) -> Optional[bytes]:
    if pem is None or isinstance(pem, bytes):
        return pem
    return pathlib.Path(pem).read_bytes()


def credentials(
    root_cert: Optional[Pem], client_cert: Optional[Pem], client_key: Optional[Pem]
) -> Optional[grpc.ChannelCredentials]:
    """Returns None for a connection without TLS."""
    if (client_cert is None) != (client_key is None):
        raise ValueError("client_cert and client_key go together")
    if root_cert is None:
        if client_cert is not None:
            raise ValueError("client_cert needs root_cert")
        return None
    return grpc.ssl_channel_credentials(_read_pem(root_cert), _read_pem(client_key), _read_pem(client_cert))


def host_of(address: str) -> str:
    """The host of HOST:PORT, without brackets. ValueError says what is missing: nothing is guessed."""

    def bad(why: str) -> ValueError:
        return ValueError(f'"{address}" is not HOST:PORT: {why}')

    host, colon, port = address.rpartition(":")
    if host.startswith("[") != host.endswith("]") or address.endswith("]") or not colon or not port:
        raise bad("the port is missing")
    if host.startswith("["):
        host = host[1:-1]
    elif ":" in host:
        raise bad("an IPv6 address needs brackets, as in [::1]:50051")
    if not host:
        raise bad("the host is missing")
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise bad("the port must be a number from 1 to 65535")
    return host


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def proxy_of(host: str) -> str:
    """How gRPC goes to the host, for people: "the proxy HOST:PORT, ..."; empty if it goes there directly.

    It does so if the host is this machine, or if no_proxy, NO_PROXY or gRPC's no_grpc_proxy names it or its domain.
    """
    bypass: Any = urllib.request.proxy_bypass_environment  # type: ignore[attr-defined]
    if _is_loopback(host) or bypass(host) or bypass(host, {"no": os.environ.get("no_grpc_proxy", "")}):
        return ""
    for variable in ("grpc_proxy", "https_proxy", "http_proxy"):
        url = os.environ.get(variable)
        if url is not None:
            parsed = urllib.parse.urlsplit(url if "://" in url else f"http://{url}")
            place = parsed.netloc.rpartition("@")[2]  # without a password
            return f"the proxy {place}, which the variable {variable} names" if url else ""
    return ""


def open_channel(
    grpc_module: Any, address: str, channel_credentials: Optional[grpc.ChannelCredentials], proxy: str
) -> Any:
    """`grpc_module`: grpc or grpc.aio. `proxy`: as proxy_of."""
    options = [*_OPTIONS, ("grpc.enable_http_proxy", 1 if proxy else 0)]
    if channel_credentials is None:
        return grpc_module.insecure_channel(address, options=options)
    return grpc_module.secure_channel(address, channel_credentials, options=options)


def metadata(api_key: Optional[str]) -> List[Tuple[str, str]]:
    return [] if api_key is None else [("authorization", f"Bearer {api_key}")]


# The type of each method's response.
_UNARY = {
    "Goldfinch.Tokenize": pb.TokenizeResponse,
    "Goldfinch.Detokenize": pb.DetokenizeResponse,
    "Goldfinch.GetModelInfo": pb.GetModelInfoResponse,
    "Goldfinch.GetClusterInfo": pb.GetClusterInfoResponse,
    "Contexts.Fork": contexts_pb2.Context,
    "Contexts.Get": contexts_pb2.Context,
    "Contexts.List": contexts_pb2.ListContextsResponse,
    "Contexts.Rename": contexts_pb2.Context,
    "Contexts.Pin": contexts_pb2.Context,
    "Contexts.Delete": contexts_pb2.DeleteContextResponse,
    "Contexts.Import": contexts_pb2.ImportContextResponse,
}
_STREAMS = {
    "Goldfinch.Generate": pb.GenerateResponse,
    "Goldfinch.Score": pb.ScoreResponse,
    "Contexts.Create": contexts_pb2.CreateContextResponse,
    "Contexts.Append": contexts_pb2.CreateContextResponse,
    "Contexts.Export": contexts_pb2.ExportContextResponse,
}


# Methods are called by name, as generated stubs refuse any gRPC older than the one that made them.
def methods(channel: Any) -> Dict[str, Any]:
    def method(kind: Any, name: str, response: Any) -> Any:
        return kind(
            _PACKAGE + name.replace(".", "/"),
            request_serializer=lambda request: request.SerializeToString(),
            response_deserializer=response.FromString,
        )

    return {
        **{name: method(channel.unary_unary, name, response) for name, response in _UNARY.items()},
        **{name: method(channel.unary_stream, name, response) for name, response in _STREAMS.items()},
    }


class Attempts:
    """Counts the attempts of one call, and keeps its deadline."""

    def __init__(self, timeout: Optional[float], retries: int, proxy: str) -> None:
        self.proxy = proxy  # by which the calls go, as proxy_of
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._left = retries
        self._backoff = _BACKOFF_SECONDS

    def timeout(self) -> Optional[float]:
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    def backoff(self, error: grpc.RpcError) -> Optional[float]:
        """Returns the seconds to wait before the next attempt of a call that has brought nothing; None: give up."""
        seconds = self._backoff * random.uniform(0.5, 1)
        left = self.timeout()
        if error.code() != grpc.StatusCode.UNAVAILABLE or self._left <= 0 or (left is not None and left <= seconds):
            return None
        self._left -= 1
        self._backoff = min(2 * self._backoff, _BACKOFF_SECONDS_MAX)
        return seconds
