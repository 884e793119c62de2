"""What the service is for: a fact out of a long document, read by one pipeline and found by another's last stage."""

from cluster import ClusterTest
from program import PAGE

import goldfinch

FACT = "The number of Gadoza is 40718.\n"
QUESTION = "What is the number of Gadoza? "


class RecallTest(ClusterTest):
    def test_over_four_workers(self):
        client = self.form(workers=4, max_model_len=32768, split="0-0,1-2,3-3,4-5")
        document = (PAGE * 9)[:12000]
        half = document.rindex("\n", 0, 3000) + 1
        prompt = document[:half] + FACT + document[half:] + QUESTION
        answer = client.generate(prompt, max_tokens=5, sampling=goldfinch.GREEDY)
        self.assertEqual(answer.text, "40718")
        info = self.cluster.wait_idle()
        stages = info.groups[0].stages
        self.assertEqual(len(stages), 4)
        self.assertEqual([stages[0].first_layer, stages[3].last_layer], [0, 6])
        # The last stage has GOLD layers: of each token a row of 8 bf16 numbers and the id, which takes 2 bytes.
        tokens = answer.usage.prompt_tokens + 4
        self.assertEqual(stages[3].received.compressed, 16 * tokens)
        self.assertEqual(stages[3].received.ids, 2 * tokens)
        self.assertLess(stages[3].received.hidden, 20 * 128 * 4)
