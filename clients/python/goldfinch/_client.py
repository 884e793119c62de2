"""The blocking client."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Callable, Iterator, List, Optional, Sequence

import grpc

from goldfinch import _connection
from goldfinch import _messages
from goldfinch import generate_pb2 as pb
from goldfinch._contexts import Contexts
from goldfinch._errors import from_rpc
from goldfinch._types import Generation, GenerateOptions, Piece, Score, ScoreOptions, Text

if TYPE_CHECKING:
    from typing_extensions import Unpack


class _Responses:
    """The responses of a streaming call. Until the first response has arrived, a failed call may be made again."""

    def __init__(self, start: Callable[[Optional[float]], Any], attempts: _connection.Attempts) -> None:
        self._start = start
        self._attempts = attempts
        self._call = start(attempts.timeout())
        self._begun = False
        self._closed = False

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        while True:
            try:
                response = next(self._call)
                self._begun = True
                return response
            except grpc.RpcError as error:
                if self._closed:
                    raise StopIteration from None
                seconds = None if self._begun else self._attempts.backoff(error)
                if seconds is None:
                    raise from_rpc(error, self._attempts.proxy) from None
            time.sleep(seconds)
            if self._closed:
                raise StopIteration
            self._call = self._start(self._attempts.timeout())

    def close(self) -> None:
        self._closed = True
        self._call.cancel()


class Stream:
    """Iterates over the pieces of an answer as they arrive. Ending early frees the server's memory: call close(), leave
    a `with` block, or drop the stream, as `break` in `for piece in client.stream(...)` does. Only close() may be called
    from another thread than the one that iterates."""

    def __init__(self, responses: _Responses) -> None:
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

    def __iter__(self) -> Iterator[Piece]:
        return self

    def __next__(self) -> Piece:
        message = next(self._responses)
        self._header.see(message)
        return _messages.piece_of(message)

    def close(self) -> None:
        self._responses.close()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        responses = getattr(self, "_responses", None)
        if responses is not None:
            responses.close()


class Client:
    """A connection to a server. Thread-safe.

    address: HOST:PORT of the server's gRPC port.
    api_key: sent with every call.
    root_cert: CA certificate to verify the server with; turns on TLS. client_cert, client_key: for servers that ask for
        a certificate. Each is the path of a PEM file, or its bytes.
    timeout: seconds that a call may take, unless the call gives its own; None: no limit.
    retries: how often to repeat a call that ends with UNAVAILABLE before anything has arrived, after growing pauses and
        within the timeout. Off by default, so that clients do not all call an overloaded server again at once.
    """

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
        self._channel = _connection.open_channel(grpc, address, credentials, self._proxy)
        self._methods = _connection.methods(self._channel)
        self._metadata = _connection.metadata(api_key)
        self._timeout = timeout
        self._retries = retries

    @property
    def contexts(self) -> Contexts:
        """The named contexts of the server."""
        return Contexts(self)

    def generate(
        self, prompt: Text, *, timeout: Optional[float] = None, **options: Unpack[GenerateOptions]
    ) -> Generation:
        """Returns the whole answer. The arguments are those of stream()."""
        request = _messages.generate_request(prompt, **options)
        builder = _messages.GenerationBuilder()
        stream = self._stream(request, timeout)
        for piece in stream:
            builder.add(piece)
        return builder.build(max(1, request.n), stream._header)

    def stream(self, prompt: Text, *, timeout: Optional[float] = None, **options: Unpack[GenerateOptions]) -> Stream:
        """Returns the pieces of the answer as they are generated. `prompt` is a text or a list of token ids;
        GenerateOptions lists the options, generate.proto their limits and defaults."""
        return self._stream(_messages.generate_request(prompt, **options), timeout)

    def score(
        self,
        prompt: Text,
        continuations: Sequence[Text] = (),
        *,
        timeout: Optional[float] = None,
        **options: Unpack[ScoreOptions],
    ) -> Score:
        """Returns the log-probabilities of each continuation after the prompt. ScoreOptions lists the options."""
        request = _messages.score_request(prompt, continuations, **options)
        builder = _messages.ScoreBuilder(request)
        for response in self._responses("Goldfinch.Score", request, timeout):
            builder.add(response)
        return builder.build()

    def tokenize(self, text: str, *, timeout: Optional[float] = None) -> List[int]:
        return list(self._unary("Goldfinch.Tokenize", pb.TokenizeRequest(text=text), timeout).ids)

    def detokenize(self, ids: Sequence[int], *, timeout: Optional[float] = None) -> str:
        """Returns the text of the tokens, with U+FFFD for bytes that are not UTF-8."""
        return self._unary("Goldfinch.Detokenize", pb.DetokenizeRequest(ids=ids), timeout).text

    def detokenize_bytes(self, ids: Sequence[int], *, timeout: Optional[float] = None) -> bytes:
        """Returns the bytes of the tokens, unchanged."""
        return self._unary("Goldfinch.Detokenize", pb.DetokenizeRequest(ids=ids), timeout).raw

    def model_info(self, *, timeout: Optional[float] = None) -> pb.GetModelInfoResponse:
        return self._unary("Goldfinch.GetModelInfo", pb.GetModelInfoRequest(), timeout)

    def cluster_info(self, *, timeout: Optional[float] = None) -> pb.GetClusterInfoResponse:
        return self._unary("Goldfinch.GetClusterInfo", pb.GetClusterInfoRequest(), timeout)

    def close(self) -> None:
        """Ends the calls that are still running."""
        self._channel.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _attempts(self, timeout: Optional[float], retries: Optional[int] = None) -> _connection.Attempts:
        return _connection.Attempts(
            self._timeout if timeout is None else timeout, self._retries if retries is None else retries, self._proxy
        )

    def _stream(self, request: pb.GenerateRequest, timeout: Optional[float]) -> Stream:
        return Stream(self._responses("Goldfinch.Generate", request, timeout))

    def _responses(self, method: str, request: Any, timeout: Optional[float]) -> _Responses:
        def start(seconds: Optional[float]) -> Any:
            return self._methods[method](request, timeout=seconds, metadata=self._metadata)

        return _Responses(start, self._attempts(timeout))

    def _unary(self, method: str, request: Any, timeout: Optional[float], retries: Optional[int] = None) -> Any:
        """`retries`: instead of the client's."""
        attempts = self._attempts(timeout, retries)
        while True:
            try:
                return self._methods[method](request, timeout=attempts.timeout(), metadata=self._metadata)
            except grpc.RpcError as error:
                seconds = attempts.backoff(error)
                if seconds is None:
                    raise from_rpc(error, attempts.proxy) from None
            time.sleep(seconds)
