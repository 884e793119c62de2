"""Contexts over real processes: read once and asked many times, kept by key, over restarts and over losses."""

import threading
import time

import goldfinch
from cluster import ClusterTest, metric_sum, wait_until
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
        expected = client.generate(prompt, cache=False, max_tokens=60, seed=3, ignore_eos=True)
        tokens = []
        stream = client.stream(prompt, max_tokens=60, seed=3, ignore_eos=True)
        usage = None
        for piece in stream:
            tokens += [token.id for token in piece.tokens]
            usage = piece.usage or usage
            if len(tokens) >= 5 and "w1" in self.cluster.workers:
                wait_until(lambda: metric_sum(self.cluster.metrics(), "goldfinch_protected_bytes") > 0, "it is safe")
                time.sleep(0.5)
                self.cluster.workers.pop("w1").kill()
                self.cluster.start_worker("w3")
        self.assertEqual(tokens, ids_of(expected))
        self.assertEqual(usage.recoveries, 1)
        replayed = metric_sum(self.cluster.metrics(), "goldfinch_reread_tokens_total")
        self.assertLess(replayed, 30000 / 3, "most of it was loaded")
