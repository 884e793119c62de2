#!/usr/bin/env python3
"""Reads what `goldfinch generate --json` prints, and fails unless its text is the argument. Says what it took."""

import json
import sys


def main():
    (expected,) = sys.argv[1:]
    answer = json.load(sys.stdin)
    read = int(answer["prompt_tokens"]) - int(answer["cached_tokens"])
    first = float(answer["queue_seconds"]) + float(answer["prefill_seconds"])
    print(f"{answer['text']}   ({read:,} of {int(answer['prompt_tokens']):,} tokens read, first token after "
          f"{1e3 * first:.0f} ms)")
    if answer["text"] != expected:
        sys.exit(f"the answer is wrong, the document says {expected}")


if __name__ == "__main__":
    main()
