#!/usr/bin/env python3
"""The model in plain PyTorch, on the weights and lengths of model_bench: what a prompt takes without this project.

Two ways to read a prompt: every layer on every token, as the authors' own code does; and by the rule that this project
uses, GOLD layers only on the last rows. The recurrence is a public linear-attention kernel (the package fla) where that
is installed and right, else matrix products over chunks. Prints a table in the columns of the benches.
"""

import argparse
import json
import mmap
import pathlib
import struct
import sys
import time

import torch
import torch.nn.functional as F

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "demo_model"))
import goldfinch  # pylint: disable=wrong-import-position

ROW = "{:<48} {:>10} {:>18} {:>10} {:>6}  {:<30} {}"
CHUNK_TOKENS = 8192
FLA_ERROR_MAX = 2e-2  # relative; of inputs rounded to bf16

plain_wkv = goldfinch.wkv


def chunked_wkv(r, k, v, log_decay, state):
    """The recurrence in fp32 at least, whatever the activations."""
    wide = torch.promote_types(r.dtype, torch.float32)
    y, state = plain_wkv(*(x.to(wide) for x in (r, k, v, log_decay, state)))
    return y.to(r.dtype), state


def fla_wkv(r, k, v, log_decay, state):
    """The same by fla's kernel: heads after time there."""
    from fla.ops.rwkv6 import chunk_rwkv6  # pylint: disable=import-error,import-outside-toplevel

    r, k, v, log_decay = (x.transpose(1, 2).contiguous() for x in (r, k, v, log_decay))
    bonus = r.new_zeros(r.shape[-2:])
    y, state = chunk_rwkv6(
        r, k.to(r.dtype), v, log_decay.float(), bonus, scale=1.0, initial_state=state.float(), output_final_state=True
    )
    return y.transpose(1, 2), state


def choose_wkv(device):
    """(the recurrence to use, its name). A kernel that gives other numbers is not used."""
    if device == "cpu":
        return chunked_wkv, "products over chunks"
    generator = torch.Generator(device=device).manual_seed(1)
    r, k, v = (
        torch.randn(1, 2, 200, 64, generator=generator, device=device, dtype=torch.bfloat16) for _ in range(3)
    )
    log_decay = -torch.rand(1, 2, 200, 64, generator=generator, device=device)
    state = torch.randn(1, 2, 64, 64, generator=generator, device=device)
    expected, _ = chunked_wkv(r, k, v, log_decay, state)
    try:
        y, _ = fla_wkv(r, k, v, log_decay, state)
    except ImportError:
        return chunked_wkv, "products over chunks (fla is not installed)"
    except Exception as error:  # pylint: disable=broad-except
        return chunked_wkv, f"products over chunks (fla fails: {str(error).splitlines()[:1]})"
    error = ((y - expected).float().norm() / expected.float().norm()).item()
    if not error <= FLA_ERROR_MAX:
        return chunked_wkv, f"products over chunks (fla errs by {error:.2g})"
    return fla_wkv, "fla's kernel"


class Peer(goldfinch.GoldFinch):
    """The model for inference: a prompt in chunks, attention by PyTorch's own fused op."""

    def __init__(self, tensors, wkv=chunked_wkv):
        super().__init__(tensors)
        goldfinch.wkv = wkv

    def gold_time_mix(self, x, key_values, p):
        if not hasattr(F, "scaled_dot_product_attention"):
            return super().gold_time_mix(x, key_values, p)
        t = self.tensors
        dx = goldfinch.previous(x) - x
        xq = x + dx * (t[p + "time_maa_q"] + self.lora(x + dx * t[p + "time_maa_x"], p + "time_maa_q"))
        q = self.split_heads(self.norm(self.linear(xq, p + "query"), p + "ln_q"))
        k, v = key_values
        rows, length = q.shape[-2], k.shape[-2]
        past = None
        if rows < length:
            past = torch.ones(rows, length, dtype=torch.bool, device=x.device).tril(length - rows)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=past, is_causal=past is None)
        return self.linear(self.norm(y.transpose(1, 2).flatten(2), p + "ln_x"), p + "output")

    def last_logits(self, tokens, every_layer):
        """Logits [vocabulary] of the last token. every_layer: on every token, or GOLD layers where the rule says."""
        x0, rows, states = [], [], None
        for begin in range(0, tokens.shape[1], CHUNK_TOKENS):
            x0.append(self.embed(tokens[:, begin : begin + CHUNK_TOKENS]))
            after, states = self.finch_side(x0[-1], states)
            rows.append(after)
        x0, x = torch.cat(x0, 1), torch.cat(rows, 1)
        c = self.compress(x)
        if not every_layer:
            x = x[:, self.first_gold_row(x.shape[1], 1) :]
        for layer in self.gold_layers:
            p = f"blocks.{layer}."
            x = x + self.gold_time_mix(self.norm(x, p + "ln1"), self.key_values(layer, x0, c), p + "att.")
            x = x + self.channel_mix(self.norm(x, p + "ln2"), None, p + "ffn.")
        return self.linear(self.norm(x[:, -1:], "ln_out"), "head")[0, 0]


def read_safetensors(path):
    """{name: tensor} of a file of bf16 tensors, by its layout: eight bytes of length, a directory, the numbers."""
    with open(path, "rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    (length,) = struct.unpack_from("<Q", data)
    tensors = {}
    for name, entry in json.loads(data[8 : 8 + length]).items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        if entry["dtype"] != "BF16":
            raise SystemExit(f"{path}: tensor {name} is {entry['dtype']}, expected BF16")
        flat = torch.frombuffer(data, dtype=torch.bfloat16, offset=8 + length + begin, count=(end - begin) // 2)
        tensors[name] = flat.reshape(entry["shape"])
    return tensors


def to_device(tensors, device, dtype):
    """Decays stay fp32: they are exponents of exponents."""
    return {
        name: tensor.to(device, torch.promote_types(dtype, torch.float32) if "time_decay" in name else dtype)
        for name, tensor in tensors.items()
    }


def cast_decay_lora(peer, dtype):
    """The LoRAs of the decays take activations."""
    for name, tensor in peer.tensors.items():
        if name.endswith(("time_decay_w1", "time_decay_w2")):
            peer.tensors[name] = tensor.to(dtype)


def make_peer(tensors, device, dtype, wkv=chunked_wkv):
    peer = Peer(to_device(tensors, device, dtype), wkv)
    cast_decay_lora(peer, dtype)
    return peer


def measure(peer, tokens, every_layer, repeats):
    """Seconds of the fastest run, after one that is not counted."""
    wait = torch.cuda.synchronize if tokens.is_cuda else lambda: None
    best = float("inf")
    for repeat in range(repeats + 1):
        wait()
        start = time.monotonic()
        logits = peer.last_logits(tokens, every_layer)
        wait()
        if repeat > 0:
            best = min(best, time.monotonic() - start)
    if not torch.isfinite(logits).all():
        raise SystemExit("its logits are not finite")
    return best


def our_rates(path):
    """{tokens: our tokens a second} of model_bench's figures."""
    if path is None or not path.exists():
        return {}
    rows = json.loads(path.read_text(encoding="utf-8")).get("quantities", [])
    return {
        int(row["tokens"]): row["tokens"] / row["seconds"]
        for row in rows
        if row["quantity"].startswith("pre-fill, one prompt") and "seconds" in row
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=pathlib.Path, help="a .safetensors of bf16 tensors")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tokens", type=int, nargs="+", help="lengths of prompts [8192 65536]")
    parser.add_argument("--ours", type=pathlib.Path, help="what model_bench --json wrote, to compare with")
    parser.add_argument("--json", type=pathlib.Path, help="also writes the figures to this file")
    parser.add_argument("--tiny", action="store_true", help="small sizes: the times mean nothing")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("SKIPPED: PyTorch sees no CUDA device")
        return 0
    if hasattr(torch, "set_default_device"):
        torch.set_default_device(arguments.device)
    dtype = torch.float32 if arguments.device == "cpu" else torch.bfloat16
    wkv, kernel = choose_wkv(arguments.device)
    print(f"PyTorch {torch.__version__}, {str(dtype).rpartition('.')[2]}, {kernel}")
    peer = make_peer(read_safetensors(arguments.model), arguments.device, dtype, wkv)
    print(ROW.format("quantity", "measured", "rate", "floor", "ratio", "aim", "").rstrip())
    ours = our_rates(arguments.ours)
    figures = []
    lengths = arguments.tokens or ([64, 128] if arguments.tiny else [8192, 65536])
    generator = torch.Generator().manual_seed(1)
    for length in lengths:
        tokens = torch.randint(
            peer.tensors["emb.weight"].shape[0], (1, length), generator=generator, device="cpu"
        ).to(arguments.device)
        for every_layer, name in ((True, "every layer"), (False, "pre-fill rule")):
            with torch.inference_mode():
                seconds = measure(peer, tokens, every_layer, 1 if length > 20000 or arguments.tiny else 3)
            times = f"ours is {ours[length] * seconds / length:.2f} x as fast" if length in ours else ""
            print(
                ROW.format(
                    f"PyTorch, {name}, {length:,}", f"{1e3 * seconds:.3f} ms", f"{length / seconds:.0f} tokens/s", "",
                    "", times, "",
                ).rstrip(),
                flush=True,
            )  # fmt: skip
            figures.append({"tokens": length, "every_layer": every_layer, "seconds": seconds, "kernel": kernel})
    if arguments.json:
        arguments.json.write_text(json.dumps({"torch": torch.__version__, "figures": figures}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
