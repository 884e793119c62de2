"""Client for Goldfinch Serving: `Client` blocks, `AsyncClient` is for asyncio. See README.md."""

from goldfinch._aio import AsyncClient, AsyncStream
from goldfinch._client import Client, Stream
from goldfinch._errors import (
    DeadlineExceededError,
    GoldfinchError,
    InvalidArgumentError,
    ResourceExhaustedError,
    UnauthenticatedError,
    UnavailableError,
)
from goldfinch._types import (
    GREEDY,
    Completion,
    GenerateOptions,
    Generation,
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

__all__ = [
    "AsyncClient",
    "AsyncStream",
    "Client",
    "ClusterInfo",
    "Completion",
    "DeadlineExceededError",
    "GREEDY",
    "GenerateOptions",
    "Generation",
    "GoldfinchError",
    "InvalidArgumentError",
    "Logprob",
    "ModelInfo",
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
]
