"""A server that answers Generate and Score as a script says, keeps contexts, and remembers what it was asked."""

import concurrent.futures
import hashlib
import threading

import grpc

from goldfinch import contexts_pb2
from goldfinch import generate_pb2 as pb

SECONDS_MAX = 30  # of what would hang


class FakeServer:
    """`generate` and `score`: functions of (request, context) that yield responses. Listens on `address`."""

    def __init__(self, credentials=None, api_key=None):
        self.generate = lambda request, context: iter(())
        self.score = lambda request, context: iter(())
        self.requests = []
        self.contexts = FakeContexts()
        self.cancelled = threading.Event()  # a call of `endless` ended
        self.waiting = threading.Event()  # `endless` has sent its piece
        self._api_key = api_key
        pool = concurrent.futures.ThreadPoolExecutor(max_workers=8)
        self._server = grpc.server(pool, options=[("grpc.so_reuseport", 0)])
        self._server.add_generic_rpc_handlers([self._handlers(), self._context_handlers()])
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

    def _handler(self, make, request_type, function):
        def checked(request, context):
            self._check_key(context)
            self.requests.append(request)
            return function(request, context)

        return make(
            checked,
            request_deserializer=request_type.FromString,
            response_serializer=lambda response: response.SerializeToString(),
        )

    def _context_handlers(self):
        unary, stream = grpc.unary_unary_rpc_method_handler, grpc.unary_stream_rpc_method_handler
        kinds = {"Create": stream, "Append": stream, "Export": stream, "List": unary, "Import": unary}
        kinds.update({name: unary for name in ("Fork", "Get", "Rename", "Pin", "Delete")})
        requests = {name: getattr(contexts_pb2, f"{name}ContextRequest", None) for name in kinds}
        requests["List"] = contexts_pb2.ListContextsRequest
        functions = {name: getattr(self.contexts, name.lower(), None) for name in kinds}
        functions["Import"] = self.contexts.import_  # `import` is a word of Python
        return grpc.method_handlers_generic_handler(
            "goldfinch.v1.Contexts",
            {
                name: self._handler(kind, requests[name], functions[name])
                for name, kind in kinds.items()
            },
        )

    def _handlers(self):
        def handler(make, name, function):
            return self._handler(make, getattr(pb, name + "Request"), function)

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


class FakeContexts:
    """Keeps texts by name, each byte a token. Their files are `file`, whatever they are."""

    def __init__(self):
        self.texts = {}
        self.about = {}
        self.file = bytes(range(256)) * 17
        self.piece_bytes = 1000
        self.breaks = []  # after how many pieces the next exports break off, and before or after the next imports do
        self.sha256 = None  # instead of the right one
        self.uploads = {}
        self._changes = 0

    def _find(self, name, etag, context):
        if name not in self.texts:
            context.abort(grpc.StatusCode.NOT_FOUND, f'there is no context "{name}"')
        if etag and etag != self.about[name].etag:
            context.abort(grpc.StatusCode.ABORTED, f"etag is {etag}, the context has {self.about[name].etag}")
        return self.about[name]

    def change(self, name, text):
        """The context is now this text, and has another etag."""
        self._changes += 1
        self.texts[name] = text
        about = self.about.setdefault(name, contexts_pb2.Context(place=contexts_pb2.MEMORY, created_unix_seconds=5))
        about.name, about.tokens, about.etag = name, len(text), f"v{self._changes}"
        return about

    def _keep(self, keep_as, text, context):
        if keep_as.name in self.texts and self.about[keep_as.name].etag != keep_as.etag:
            context.abort(grpc.StatusCode.ALREADY_EXISTS, f'"{keep_as.name}" is taken')
        about = self.change(keep_as.name, text)
        if keep_as.HasField("expire_after_seconds"):
            about.expires_unix_seconds = 10 + keep_as.expire_after_seconds
        return about

    @staticmethod
    def _text_of(request):
        return request.text.encode() if request.WhichOneof("prompt") == "text" else bytes(request.ids.ids)

    def _before(self, request, context):
        if not request.context:
            return b""
        self._find(request.context, "", context)
        text = self.texts[request.context]
        return text[: request.context_tokens] if request.HasField("context_tokens") else text

    def create(self, request, context):
        text = self._before(request, context) + self._text_of(request)
        progress = pb.Progress(prompt_tokens_done=1, prompt_tokens=len(text))
        yield contexts_pb2.CreateContextResponse(request_id="made", progress=progress)
        about = self._keep(request.keep_as, text, context)
        yield contexts_pb2.CreateContextResponse(context=about, usage=pb.Usage(prompt_tokens=len(text)))

    def append(self, request, context):
        self._find(request.name, request.etag, context)
        about = self.change(request.name, self.texts[request.name] + self._text_of(request))
        yield contexts_pb2.CreateContextResponse(context=about)

    def fork(self, request, context):
        return self._keep(request.keep_as, self._before(request, context), context)

    def get(self, request, context):
        return self._find(request.name, "", context)

    def list(self, request, _):
        names = sorted(name for name in self.texts if name > request.page_token)
        page = names[: request.page_size or 100]
        token = page[-1] if len(page) < len(names) else ""
        return contexts_pb2.ListContextsResponse(contexts=[self.about[name] for name in page], next_page_token=token)

    def rename(self, request, context):
        self._find(request.name, request.etag, context)
        self.about.pop(request.name)
        return self.change(request.new_name, self.texts.pop(request.name))

    def pin(self, request, context):
        self._find(request.name, request.etag, context).pinned = request.pinned
        return self.change(request.name, self.texts[request.name])

    def delete(self, request, context):
        self._find(request.name, request.etag, context)
        self.texts.pop(request.name), self.about.pop(request.name)
        return contexts_pb2.DeleteContextResponse()

    def export(self, request, context):
        about = self._find(request.name, request.etag, context)
        first = {"file_bytes": len(self.file), "etag": about.etag}
        left = self.breaks.pop(0) if self.breaks else None
        for at in range(request.offset, len(self.file), self.piece_bytes):
            if left == 0:
                context.abort(grpc.StatusCode.UNAVAILABLE, "the connection broke")
            left = None if left is None else left - 1
            yield contexts_pb2.ExportContextResponse(data=self.file[at : at + self.piece_bytes], **first)
            first = {}
        sha256 = self.sha256 or hashlib.sha256(self.file).digest()
        yield contexts_pb2.ExportContextResponse(sha256=sha256, **first)

    def import_(self, request, context):
        received = self.uploads.setdefault(request.upload, bytearray())
        if request.data:
            broken = self.breaks.pop(0) if self.breaks else None
            if broken == "before":
                context.abort(grpc.StatusCode.UNAVAILABLE, "the connection broke")
            if request.offset != len(received):
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"offset is {request.offset}")
            received.extend(request.data)
            if broken == "after":
                context.abort(grpc.StatusCode.UNAVAILABLE, "the connection broke")
        response = contexts_pb2.ImportContextResponse(received=len(received))
        if request.last:
            if request.sha256 != hashlib.sha256(received).digest():
                context.abort(grpc.StatusCode.DATA_LOSS, "the SHA-256 is wrong")
            response.context.CopyFrom(self._keep(request.keep_as, bytes(received), context))
        return response


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
