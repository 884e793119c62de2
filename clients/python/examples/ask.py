"""ask.py HOST:PORT QUESTION: prints the answer as it is generated."""

import sys

import goldfinch

with goldfinch.Client(sys.argv[1]) as client:
    for piece in client.stream(f"User: {sys.argv[2]}\n\nAssistant:", stop="\n\n", max_tokens=256):
        print(piece.text, end="", flush=True)
    print()
