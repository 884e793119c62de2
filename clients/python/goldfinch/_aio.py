"""The client for asyncio."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, AsyncIterator, Callable, List, Optional, Sequence

import grpc
import grpc.aio

from goldfinch import _connection
from goldfinch import _messages
from goldfinch import generate_pb2 as pb
from goldfinch._aio_contexts import AsyncContexts
from goldfinch._errors import from_rpc
from goldfinch._types import Generation, GenerateOptions, Piece, Score, ScoreOptions, Text

if TYPE_CHECKING:
    from typing_extensions import Unpack


class _AsyncResponses:
    """The responses of a streaming call. Until the first response has arrived, a failed call may be made again."""

    def __init__(self, start: Callable[[Optional[float]], Any], attempts: _connection.Attempts) -> None:
        self._start = start
        self._attempts = attempts
        self._call = start(attempts.timeout())
        self._begun = False
        self._closed = False

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        while not self._closed:
            try:
                response = await self._call.read()
            except grpc.RpcError as error:
                if self._closed:
                    break
                seconds = None if self._begun else self._attempts.backoff(error)
                if seconds is None:
                    raise from_rpc(error, self._attempts.proxy) from None
            except asyncio.CancelledError:
                # close() while this waits looks like a cancelled task.
                if not self._closed:
                    self.close()
                    raise
                break
            else:
                if response is grpc.aio.EOF:
                    break
                self._begun = True
                return response
            await asyncio.sleep(seconds)
            if not self._closed:
                self._call = self._start(self._attempts.timeout())
        raise StopAsyncIteration

    def close(self) -> None:
        self._closed = True
        self._call.cancel()


class AsyncStream:
    """Iterates over the pieces of an answer as they arrive. Ending early frees the server's memory: call close(), leave
    an `async with` block, cancel the task that iterates, or drop the stream, as `break` in a loop over it does."""

    def __init__(self, responses: _AsyncResponses) -> None:
        self._responses = responses
        self._header = _messages.Header()

    @property
    def request_id(self) -> str:
        """Empty until the first piece has arrived."""
        return self._header.request_id

    @property
    def seed(self) -> int:
        """Seed of the random draws; 0 until the first piece has arrived."""
        return self._header.seed

    def __aiter__(self) -> AsyncIterator[Piece]:
        return self

    async def __anext__(self) -> Piece:
        message = await self._responses.__anext__()
        self._header.see(message)
        return _messages.piece_of(message)

    def close(self) -> None:
        self._responses.close()

    async def __aenter__(self) -> AsyncStream:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        responses = getattr(self, "_responses", None)
        if responses is not None:
            responses.close()


class AsyncClient:
    """A connection to a server, with the arguments of Client. Must be made and used within one event loop."""

    def __init__(
        self,
        address: str,
        *,
        api_key: Optional[str] = None,
        root_cert: Optional[_connection.Pem] = None,
        client_cert: Optional[_connection.Pem] = None,
        client_key: Optional[_connection.Pem] = None,
        timeout: Optional[float] = None,
        retries: int = 0,
    ) -> None:
        credentials = _connection.credentials(root_cert, client_cert, client_key)
        self._proxy = _connection.proxy_of(_connection.host_of(address))
        self._channel = _connection.open_channel(grpc.aio, address, credentials, self._proxy)
        self._methods = _connection.methods(self._channel)
        self._metadata = _connection.metadata(api_key)
        self._timeout = timeout
        self._retries = retries

    @property
    def contexts(self) -> AsyncContexts:
        """The named contexts of the server."""
        return AsyncContexts(self)

    async def generate(
        self, prompt: Text, *, timeout: Optional[float] = None, **options: Unpack[GenerateOptions]
    ) -> Generation:
        """As Client.generate()."""
        request = _messages.generate_request(prompt, **options)
        builder = _messages.GenerationBuilder()
        stream = self._stream(request, timeout)
        async for piece in stream:
            builder.add(piece)
        return builder.build(max(1, request.n), stream._header)

    def stream(
        self, prompt: Text, *, timeout: Optional[float] = None, **options: Unpack[GenerateOptions]
    ) -> AsyncStream:
        """As Client.stream(), for `async for`."""
        return self._stream(_messages.generate_request(prompt, **options), timeout)

    async def score(
        self,
        prompt: Text,
        continuations: Sequence[Text] = (),
        *,
        timeout: Optional[float] = None,
        **options: Unpack[ScoreOptions],
    ) -> Score:
        """As Client.score()."""
        request = _messages.score_request(prompt, continuations, **options)
        builder = _messages.ScoreBuilder(request)
        async for response in self._responses("Goldfinch.Score", request, timeout):
            builder.add(response)
        return builder.build()

    async def tokenize(self, text: str, *, timeout: Optional[float] = None) -> List[int]:
        return list((await self._unary("Goldfinch.Tokenize", pb.TokenizeRequest(text=text), timeout)).ids)

    async def detokenize(self, ids: Sequence[int], *, timeout: Optional[float] = None) -> str:
        """Returns the text of the tokens, with U+FFFD for bytes that are not UTF-8."""
        return (await self._unary("Goldfinch.Detokenize", pb.DetokenizeRequest(ids=ids), timeout)).text

    async def detokenize_bytes(self, ids: Sequence[int], *, timeout: Optional[float] = None) -> bytes:
        """Returns the bytes of the tokens, unchanged."""
        return (await self._unary("Goldfinch.Detokenize", pb.DetokenizeRequest(ids=ids), timeout)).raw

    async def model_info(self, *, timeout: Optional[float] = None) -> pb.GetModelInfoResponse:
        return await self._unary("Goldfinch.GetModelInfo", pb.GetModelInfoRequest(), timeout)

    async def cluster_info(self, *, timeout: Optional[float] = None) -> pb.GetClusterInfoResponse:
        return await self._unary("Goldfinch.GetClusterInfo", pb.GetClusterInfoRequest(), timeout)

    async def close(self) -> None:
        """Ends the calls that are still running."""
        await self._channel.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _attempts(self, timeout: Optional[float], retries: Optional[int] = None) -> _connection.Attempts:
        return _connection.Attempts(
            self._timeout if timeout is None else timeout, self._retries if retries is None else retries, self._proxy
        )

    def _stream(self, request: pb.GenerateRequest, timeout: Optional[float]) -> AsyncStream:
        return AsyncStream(self._responses("Goldfinch.Generate", request, timeout))

    def _responses(self, method: str, request: Any, timeout: Optional[float]) -> _AsyncResponses:
        def start(seconds: Optional[float]) -> Any:
            return self._methods[method](request, timeout=seconds, metadata=self._metadata)

        return _AsyncResponses(start, self._attempts(timeout))

    async def _unary(self, method: str, request: Any, timeout: Optional[float], retries: Optional[int] = None) -> Any:
        """`retries`: instead of the client's."""
        attempts = self._attempts(timeout, retries)
        while True:
            try:
                return await self._methods[method](request, timeout=attempts.timeout(), metadata=self._metadata)
            except grpc.RpcError as error:
                seconds = attempts.backoff(error)
                if seconds is None:
                    raise from_rpc(error, attempts.proxy) from None
            await asyncio.sleep(seconds)
