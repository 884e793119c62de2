"""Contexts over real processes: read once and asked many times, kept by key, over restarts and losses, and as files."""

import contextlib
import json
import struct
import threading
import time

import checkpoints
import goldfinch
import grpc
import program
from cluster import ClusterTest, metric_sum, wait_until
from goldfinch import contexts_pb2
from program import PAGE

DOCUMENT = (PAGE * 9)[:9000] + "\n"
SAMPLED = {"max_tokens": 16, "seed": 11, "ignore_eos": True}


def ids_of(answer):
    return [token.id for token in answer.tokens]


class ContextTest(ClusterTest):
    def read_tokens(self):
        return metric_sum(self.cluster.metrics(), "goldfinch_prompt_tokens_total")

    def test_many_questions_read_the_document_once(self):
        client = self.serve()
        document = client.contexts.create("document", DOCUMENT)
        self.assertEqual(document.tokens, len(DOCUMENT))
        self.assertGreaterEqual(self.read_tokens(), document.tokens)
        before = self.read_tokens()
        questions = [f"Question {i}: what came to pass?" for i in range(64)]
        answers = [None] * len(questions)

        def ask(i):
            answers[i] = self.cluster.client().generate(questions[i], context="document", **SAMPLED)

        threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(questions))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(self.read_tokens() - before, sum(map(len, questions)))
        for question, answer in zip(questions, answers):
            self.assertEqual(answer.usage.prompt_tokens, len(DOCUMENT) + len(question))
            self.assertEqual(answer.usage.cached_tokens, len(DOCUMENT))
        for i in (0, 63):
            cold = client.generate(DOCUMENT + questions[i], cache=False, **SAMPLED)
            self.assertEqual(cold.usage.cached_tokens, 0)
            self.assertEqual(ids_of(cold), ids_of(answers[i]))
        self.cluster.wait_idle()

    def test_a_conversation_is_kept_forked_and_goes_on(self):
        client = self.serve()
        first = client.generate("In the beginning", keep_as="chat", **SAMPLED)
        chat = client.contexts.get("chat")
        self.assertEqual(chat.tokens, len("In the beginning") + 16)
        second = client.generate(" And then", context="chat", keep_as="chat", **SAMPLED)
        self.assertEqual(second.usage.cached_tokens, chat.tokens)
        cold = client.generate("In the beginning" + first.text + " And then", cache=False, **SAMPLED)
        self.assertEqual(cold.text, second.text)
        self.assertNotEqual(client.contexts.get("chat").etag, chat.etag)
        with self.assertRaises(goldfinch.AbortedError):
            client.contexts.append("chat", "too late", etag=chat.etag)
        fork = client.contexts.fork("chat", "fork", context_tokens=16)
        self.assertEqual(fork.tokens, 16)
        again = client.generate([], context="fork", **SAMPLED)
        self.assertEqual(ids_of(again), ids_of(first))
        client.contexts.rename("fork", "beginning")
        self.assertEqual([context.name for context in client.contexts.list()], ["beginning", "chat"])
        client.contexts.delete("beginning")
        client.contexts.delete("chat")
        with self.assertRaises(goldfinch.NotFoundError):
            client.generate("x", context="chat", **SAMPLED)
        self.cluster.wait_idle()

    def test_keys_do_not_share(self):
        secrets = ("the-first-api-key", "the-second-api-key")
        keys = self.cluster.folder / "keys"
        keys.write_text("\n".join(secrets) + "\n")
        self.cluster.connect_with(api_key=secrets[0])
        self.serve(api_key_file=keys)
        alice, bob = (self.cluster.client(api_key=secret) for secret in secrets)
        alice.contexts.create("document", DOCUMENT)
        with self.assertRaises(goldfinch.NotFoundError):
            bob.contexts.get("document")
        self.assertEqual(list(bob.contexts.list()), [])
        self.assertEqual(bob.generate(DOCUMENT + "What?", **SAMPLED).usage.cached_tokens, 0)
        self.assertEqual(alice.generate(DOCUMENT + "What?", **SAMPLED).usage.cached_tokens, len(DOCUMENT))
        bob.contexts.create("document", "another text")
        self.assertEqual(alice.contexts.get("document").tokens, len(DOCUMENT))


class DurableContextTest(ClusterTest):
    def test_a_killed_server_finds_everything_again(self):
        folder = self.cluster.folder / "contexts"
        client = self.serve(context_dir=folder)
        client.contexts.create("document", DOCUMENT)
        expected = client.generate("What now? ", context="document", **SAMPLED)
        plain = client.generate(PAGE[:3000], **SAMPLED)
        wait_until(lambda: client.contexts.get("document").place in ("disk", "memory and disk"), "it is on the disk")
        time.sleep(1)
        self.cluster.server.kill()
        client = self.serve(context_dir=folder, pipeline_parallel_size=2)
        self.assertEqual(client.contexts.get("document").tokens, len(DOCUMENT))
        answer = client.generate("What now? ", context="document", **SAMPLED)
        self.assertEqual(ids_of(answer), ids_of(expected))
        self.assertGreaterEqual(answer.usage.cached_tokens, len(DOCUMENT))
        again = client.generate(PAGE[:3000], **SAMPLED)
        self.assertEqual(ids_of(again), ids_of(plain))
        self.assertGreater(again.usage.cached_tokens, 2000)
        self.cluster.wait_idle()

    def test_a_lost_worker_costs_a_reload(self):
        client = self.form(workers=3, protect_tokens=1024)
        prompt = (PAGE * 20)[:30000]

        def metric(name):
            return metric_sum(self.cluster.metrics(), name)

        request = {"seed": 3, "ignore_eos": True}
        expected = client.generate(prompt, cache=False, max_tokens=120, **request)
        tokens = []
        # Long enough that it has not ended when the worker is killed.
        with client.stream(prompt, max_tokens=5000, **request) as stream:
            for piece in stream:
                tokens += [token.id for token in piece.tokens]
                if "w1" in self.cluster.workers:
                    wait_until(lambda: metric("goldfinch_protected_bytes") > 0, "it is safe")
                    time.sleep(0.5)
                    self.cluster.workers.pop("w1").kill()
                    self.cluster.start_worker("w3")
                    killed_at = len(tokens)
                if metric("goldfinch_request_recoveries_total") and len(tokens) >= 120:
                    break
        self.assertLess(killed_at, 120)
        self.assertEqual(tokens[:120], ids_of(expected))
        self.assertLess(metric("goldfinch_reread_tokens_total"), 30000 / 3, "most of it was loaded")


def read_safetensors(path):
    """The metadata of a safetensors file, and {name: (dtype, shape, bytes)} of its tensors."""
    content = path.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + size])
    metadata = header.pop("__metadata__")
    data = content[8 + size :]
    tensors = {}
    for name, tensor in header.items():
        begin, end = tensor["data_offsets"]
        tensors[name] = (tensor["dtype"], tensor["shape"], data[begin:end])
    return metadata, tensors


def write_tuned_state(path):
    """A .pth file as state tuning of the demo model leaves it: a WKV state for each recurrent layer."""
    heads = {
        name.removesuffix("time_faaaa"): tensor.shape
        for name, tensor in checkpoints.read_pth(program.DEMO_MODEL).items()
        if name.endswith("time_faaaa")
    }
    tensors = {}
    for name, (count, size) in heads.items():
        values = [((number * 37) % 101 - 50) * 4 for number in range(count * size * size)]
        data = struct.pack(f"<{len(values)}f", *values)
        tensors[name + "time_state"] = checkpoints.Tensor("f32", (count, size, size), data)
    return checkpoints.write_pth(path, tensors)


class ExchangeTest(ClusterTest):
    """Contexts as files, between servers of different splits."""

    def program(self, *arguments, **options):
        done = program.run(*arguments, **options)
        self.assertEqual(done.code, 0, done.stderr)
        return done.stdout.decode()

    def restart(self, **options):
        """Another server, which has nothing of the one before."""
        self.cluster.server.terminate()
        self.cluster.server.wait()
        return self.serve(**options)

    def check_file(self, path, tokens):
        metadata, tensors = read_safetensors(path)
        self.assertEqual(int(metadata["position"]), tokens)
        dtype, shape, ids = tensors["ids"]
        self.assertEqual((dtype, shape), ("U16", [tokens]))
        self.assertEqual([number - 1 for number in struct.unpack(f"<{tokens}H", ids)], list(DOCUMENT.encode()))
        for name in tensors:
            self.assertIn(f"crc32c.{name}", metadata)
        with contextlib.suppress(ImportError):
            from safetensors import safe_open

            with safe_open(path, "numpy") as file:
                self.assertEqual(set(file.keys()), set(tensors))

    def test_a_file_goes_from_server_to_server(self):
        first, second = (self.cluster.folder / name for name in ("first", "second"))
        by_program, by_package = (self.cluster.folder / f"{name}.safetensors" for name in ("program", "package"))
        client = self.serve(context_dir=first)
        client.contexts.create("document", DOCUMENT)
        expected = client.generate("What now? ", context="document", **SAMPLED)
        server = ["--server", self.cluster.address]
        self.program("context", "export", "document", by_program, *server)
        client.contexts.export_to("document", by_package)
        self.assertEqual(by_program.read_bytes(), by_package.read_bytes())
        self.check_file(by_program, len(DOCUMENT))
        self.program("context", "verify", by_program)
        local = program.generate("What now? ", context=by_program, max_tokens=16, ignore_eos=True)
        alone = program.generate(DOCUMENT + "What now? ", max_tokens=16, ignore_eos=True)
        self.assertEqual(self.program(*local), self.program(*alone))

        client = self.restart(context_dir=second, pipeline_parallel_size=2)
        self.program("context", "import", by_program, "book", *server)
        copy = client.contexts.import_from(by_package, "copy")
        self.assertEqual((copy.tokens, copy.place), (len(DOCUMENT), "disk"))
        self.assertEqual(copy.shared_bytes, copy.bytes)
        before = metric_sum(self.cluster.metrics(), "goldfinch_prompt_tokens_total")
        for name in ("book", "copy"):
            answer = client.generate("What now? ", context=name, **SAMPLED)
            self.assertEqual(ids_of(answer), ids_of(expected))
        read = metric_sum(self.cluster.metrics(), "goldfinch_prompt_tokens_total") - before
        self.assertLess(read, len(DOCUMENT), "it was not read")
        with self.assertRaises(goldfinch.AlreadyExistsError):
            client.contexts.create("book", "another text")
        damaged = bytearray(by_program.read_bytes())
        damaged[-1] ^= 1
        by_package.write_bytes(damaged)
        with self.assertRaises(goldfinch.GoldfinchError) as error:
            client.contexts.import_from(by_package, "damaged")
        self.assertEqual(error.exception.code, grpc.StatusCode.DATA_LOSS)
        self.assertEqual([context.name for context in client.contexts.list()], ["book", "copy"])
        self.cluster.wait_idle()
        # What was imported is there after a kill, as all else.
        wait_until(lambda: len(list(second.glob("*.context"))) == 2, "the names are on the disk")
        self.cluster.server.kill()
        client = self.serve(context_dir=second, pipeline_parallel_size=3)
        answer = client.generate("What now? ", context="book", **SAMPLED)
        self.assertEqual(ids_of(answer), ids_of(expected))

    def test_a_tuned_state_is_imported(self):
        folder = self.cluster.folder / "contexts"
        state = write_tuned_state(self.cluster.folder / "poet.pth")
        greedy = {"max_tokens": 16, "ignore_eos": True}

        def tokens_of(**where):
            answer = self.program(*program.generate("The sea", json=True, **greedy, **where))
            return [token["id"] for token in json.loads(answer)["tokens"]]

        expected, plain = tokens_of(context=state), tokens_of()
        self.assertNotEqual(expected, plain)
        client = self.serve(context_dir=folder)
        server = {"server": self.cluster.address, "model": None, "threads": None}
        self.program("context", "import", state, "poet", "--server", self.cluster.address)
        poet = client.contexts.get("poet")
        self.assertEqual((poet.tokens, poet.place), (0, "disk"))
        self.assertEqual(tokens_of(context="poet", **server), expected)
        self.assertEqual(tokens_of(**server), plain, "what was read after the state is no beginning of another text")
        # A conversation goes on from it.
        first = client.generate("The sea", context="poet", keep_as="poem", **SAMPLED)
        second = client.generate(" And then", context="poem", **SAMPLED)
        self.assertEqual(second.usage.cached_tokens, client.contexts.get("poem").tokens)
        whole = [byte + 1 for byte in b"The sea"] + ids_of(first) + [byte + 1 for byte in b" And then"]
        self.assertEqual(ids_of(client.generate(whole, context="poet", cache=False, **SAMPLED)), ids_of(second))
        with self.assertRaises(goldfinch.GoldfinchError) as error:
            client.contexts.export_to("poem", self.cluster.folder / "poem.safetensors")
        self.assertEqual(error.exception.code, grpc.StatusCode.FAILED_PRECONDITION)
        exported = self.cluster.folder / "poet.safetensors"
        client.contexts.export_to("poet", exported)
        self.assertEqual(tokens_of(context=exported), expected)
        self.program("context", "import", exported, "copy", "--server", self.cluster.address)
        copy = client.contexts.get("copy")
        self.assertEqual(copy.shared_bytes, copy.bytes, "it is kept once")
        self.cluster.wait_idle()

        wait_until(lambda: len(list(folder.glob("*.context"))) == 3, "the names are on the disk")
        self.cluster.server.kill()
        client = self.serve(context_dir=folder, pipeline_parallel_size=2)
        self.assertEqual(ids_of(client.generate(" And then", context="poem", **SAMPLED)), ids_of(second))
        self.assertEqual(tokens_of(context="poet", **server), expected)
        self.assertEqual(tokens_of(**server), plain)
        for name in ("poem", "poet", "copy"):
            client.contexts.delete(name)
        self.cluster.wait_idle()

    def test_an_export_goes_on_where_it_was_cut(self):
        client = self.serve(context_dir=self.cluster.folder / "contexts")
        client.contexts.create("document", DOCUMENT)
        whole, cut = (self.cluster.folder / f"{name}.safetensors" for name in ("whole", "cut"))
        client.contexts.export_to("document", whole)
        etag = self.first_etag(client)
        cut.with_name("cut.safetensors.partial").write_bytes(whole.read_bytes()[:100_000])
        cut.with_name("cut.safetensors.partial.etag").write_text(etag)
        seen = []
        client.contexts.export_to("document", cut, progress=lambda have, _: seen.append(have))
        self.assertGreaterEqual(seen[0], 100_000)
        self.assertEqual(cut.read_bytes(), whole.read_bytes())

    def first_etag(self, client):
        responses = client._responses("Contexts.Export", contexts_pb2.ExportContextRequest(name="document"), 60)
        return [response.etag for response in responses][0]

    def test_without_a_store_the_server_says_what_it_needs(self):
        client = self.serve()
        client.contexts.create("document", DOCUMENT[:1000])
        with self.assertRaises(goldfinch.GoldfinchError) as error:
            client.contexts.export_to("document", self.cluster.folder / "none.safetensors")
        self.assertEqual(error.exception.code, grpc.StatusCode.FAILED_PRECONDITION)
        self.assertIn("context_dir", str(error.exception))
        state = write_tuned_state(self.cluster.folder / "poet.pth")
        refused = program.run("context", "import", state, "poet", "--server", self.cluster.address)
        self.assertEqual(refused.code, 1)
        self.assertIn("context_dir", refused.stderr)
