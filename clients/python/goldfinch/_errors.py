"""The exceptions that calls raise."""

from __future__ import annotations

import grpc


class GoldfinchError(Exception):
    """A call failed. `code` is the canonical gRPC code; `message` names the field, its value and the limit."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(f"{code.name}: {message}")
        self.code = code
        self.message = message

    def __reduce__(self):  # so that an error keeps its fields when it is pickled
        return type(self), (self.code, self.message)


class InvalidArgumentError(GoldfinchError, ValueError):
    """The request can never be served."""


class UnauthenticatedError(GoldfinchError):
    """No API key, or a wrong one."""


class ResourceExhaustedError(GoldfinchError):
    """The server's queue or memory is full, or this client did not read: try again later."""


class DeadlineExceededError(GoldfinchError, TimeoutError):
    """The deadline has passed, or the server refused at once because it cannot be met."""


class UnavailableError(GoldfinchError, ConnectionError):
    """There is no server, no group of workers is ready, or the server is ending: try again elsewhere or later."""


class NotFoundError(GoldfinchError, LookupError):
    """There is no context of this name."""


class AlreadyExistsError(GoldfinchError):
    """The name of a context is taken."""


class AbortedError(GoldfinchError):
    """The context has changed: it has another etag than the one that was given."""


_CLASSES = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgumentError,
    grpc.StatusCode.UNAUTHENTICATED: UnauthenticatedError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhaustedError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceededError,
    grpc.StatusCode.UNAVAILABLE: UnavailableError,
    grpc.StatusCode.NOT_FOUND: NotFoundError,
    grpc.StatusCode.ALREADY_EXISTS: AlreadyExistsError,
    grpc.StatusCode.ABORTED: AbortedError,
}


def from_rpc(error: grpc.RpcError, proxy: str) -> GoldfinchError:
    """`proxy`: by which the call went, as proxy_of of _connection; it may be why there is no connection."""
    code, details = error.code(), error.details() or ""
    if proxy and code == grpc.StatusCode.UNAVAILABLE:
        details += f" (by {proxy}; no_proxy lists hosts to reach without it)"
    return _CLASSES.get(code, GoldfinchError)(code, details)
