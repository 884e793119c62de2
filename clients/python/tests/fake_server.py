"""A server that answers Generate and Score as a script says, and remembers what it was asked."""

import concurrent.futures
import threading

import grpc

from goldfinch import generate_pb2 as pb

SECONDS_MAX = 30  # of what would hang


class FakeServer:
    """`generate` and `score`: functions of (request, context) that yield responses. Listens on `address`."""

    def __init__(self, credentials=None, api_key=None):
        self.generate = lambda request, context: iter(())
        self.score = lambda request, context: iter(())
        self.requests = []
        self.cancelled = threading.Event()  # a call of `endless` ended
        self.waiting = threading.Event()  # `endless` has sent its piece
        self._api_key = api_key
        pool = concurrent.futures.ThreadPoolExecutor(max_workers=8)
        self._server = grpc.server(pool, options=[("grpc.so_reuseport", 0)])
        self._server.add_generic_rpc_handlers([self._handlers()])
        if credentials is None:
            port = self._server.add_insecure_port("127.0.0.1:0")
        else:
            port = self._server.add_secure_port("127.0.0.1:0", credentials)
        self.address = f"localhost:{port}"
        self._server.start()

    def stop(self):
        self._server.stop(None).wait(SECONDS_MAX)

    def endless(self, request, context):
        """A script: one piece, and then nothing until the client goes."""
        # Before the first piece: a script whose client has gone is not resumed.
        if not context.add_callback(self.cancelled.set):
            self.cancelled.set()
        yield pb.GenerateResponse(text="a")
        self.waiting.set()
        if not self.cancelled.wait(SECONDS_MAX):
            context.abort(grpc.StatusCode.INTERNAL, "the client did not cancel")

    def _handlers(self):
        def handler(make, name, function):
            def checked(request, context):
                self._check_key(context)
                self.requests.append(request)
                return function(request, context)

            return make(
                checked,
                request_deserializer=getattr(pb, name + "Request").FromString,
                response_serializer=getattr(pb, name + "Response").SerializeToString,
            )

        unary, stream = grpc.unary_unary_rpc_method_handler, grpc.unary_stream_rpc_method_handler
        return grpc.method_handlers_generic_handler(
            "goldfinch.v1.Goldfinch",
            {
                "Generate": handler(stream, "Generate", lambda *call: self.generate(*call)),
                "Score": handler(stream, "Score", lambda *call: self.score(*call)),
                "Tokenize": handler(unary, "Tokenize", tokenize),
                "Detokenize": handler(unary, "Detokenize", detokenize),
                "GetModelInfo": handler(unary, "GetModelInfo", lambda *_: pb.GetModelInfoResponse(name="fake")),
                "GetClusterInfo": handler(unary, "GetClusterInfo", lambda *_: pb.GetClusterInfoResponse(draining=True)),
            },
        )

    def _check_key(self, context):
        key = dict(context.invocation_metadata()).get("authorization")
        if self._api_key is not None and key != f"Bearer {self._api_key}":
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "no API key, or a wrong one")


def tokenize(request, _):
    return pb.TokenizeResponse(ids=[byte + 1 for byte in request.text.encode()])


def detokenize(request, context):
    if any(not 0 < token <= 256 for token in request.ids):
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, "ids[0] is 999, the limit is 256")
    raw = bytes(token - 1 for token in request.ids)
    return pb.DetokenizeResponse(text=raw.decode(errors="replace"), raw=raw)


def echo(request, _):
    """Each sample says the prompt, a character at a time, in turns."""
    first = {"request_id": request.request_id or "made", "seed": request.seed}
    samples = max(1, request.n)
    if request.progress:
        yield pb.GenerateResponse(progress=pb.Progress(prompt_tokens_done=1, prompt_tokens=len(request.text)), **first)
        first = {}
    for character in request.text:
        for index in range(samples):
            token = pb.Token(id=ord(character) + 1)
            if request.HasField("logprobs"):
                token.logprob = -0.5
                token.top.add(id=7, logprob=-0.25)
            yield pb.GenerateResponse(index=index, text=character, tokens=[token], **first)
            first = {}
    for index in range(samples):
        yield pb.GenerateResponse(index=index, finish_reason=pb.LENGTH)
    usage = pb.Usage(prompt_tokens=len(request.text), completion_tokens=len(request.text) * samples, recoveries=2)
    yield pb.GenerateResponse(usage=usage)


def fails(code, message, after=()):
    """A script: these responses, then the error."""

    def script(_, context):
        yield from after
        context.abort(code, message)

    return script


def fails_at_first(times, script):
    """A script: UNAVAILABLE so often, then as the other."""
    left = [times]

    def wrapped(request, context):
        if left[0] > 0:
            left[0] -= 1
            context.abort(grpc.StatusCode.UNAVAILABLE, "no group")
        return script(request, context)

    return wrapped
