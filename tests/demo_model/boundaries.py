"""Reads what `goldfinch status --json` prints, and says what has crossed the boundary before each stage."""

import json
import sys


def main():
    status = json.load(sys.stdin)
    status = status.get("cluster", status)
    tokens = int(status["prompt_tokens"]) + int(status["completion_tokens"])
    for group in status["groups"]:
        if group.get("plan"):
            print("split:", group["plan"])
        for number, stage in enumerate(group["stages"]):
            if number == 0:
                continue
            received = {name: int(stage["received"][name]) for name in ("hidden", "compressed", "ids")}
            parts = ", ".join(f"{name} {count:,} B" for name, count in received.items())
            first, last = int(stage["first_layer"]), int(stage["last_layer"]) - 1
            layers = f"layer {first}" if first == last else f"layers {first}-{last}"
            print(f"to stage {number} ({layers}): {parts}; {sum(received.values()) / max(tokens, 1):,.0f} B a token")


if __name__ == "__main__":
    main()
