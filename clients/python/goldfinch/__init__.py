"""Client for Goldfinch Serving: `Client` blocks, `AsyncClient` is for asyncio. See README.md."""

import importlib.metadata

from goldfinch._aio import AsyncClient, AsyncStream
from goldfinch._aio_contexts import AsyncContexts
from goldfinch._client import Client, Stream
from goldfinch._contexts import Contexts
from goldfinch._errors import (
    AbortedError,
    AlreadyExistsError,
    DeadlineExceededError,
    GoldfinchError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
    UnauthenticatedError,
    UnavailableError,
)
from goldfinch._types import (
    GREEDY,
    Completion,
    Context,
    GenerateOptions,
    Generation,
    KeepAs,
    Logprob,
    Piece,
    Progress,
    Sampling,
    Score,
    ScoredText,
    ScoreOptions,
    Token,
    Usage,
)
from goldfinch.generate_pb2 import GetClusterInfoResponse as ClusterInfo
from goldfinch.generate_pb2 import GetModelInfoResponse as ModelInfo

__version__ = importlib.metadata.version("goldfinch")

__all__ = [
    "AbortedError",
    "AlreadyExistsError",
    "AsyncClient",
    "AsyncContexts",
    "AsyncStream",
    "Client",
    "ClusterInfo",
    "Completion",
    "Context",
    "Contexts",
    "DeadlineExceededError",
    "GREEDY",
    "GenerateOptions",
    "Generation",
    "GoldfinchError",
    "InvalidArgumentError",
    "KeepAs",
    "Logprob",
    "ModelInfo",
    "NotFoundError",
    "Piece",
    "Progress",
    "ResourceExhaustedError",
    "Sampling",
    "Score",
    "ScoreOptions",
    "ScoredText",
    "Stream",
    "Token",
    "UnauthenticatedError",
    "UnavailableError",
    "Usage",
    "__version__",
]
