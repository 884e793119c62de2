"""GoldFinch in PyTorch: Finch-C2 layers, then GOLD layers over their compressed cache.

Weights are a plain dict of tensors under the names of the released checkpoints. The Finch side is linear in the length
and carries its states from piece to piece; GOLD layers run only on the rows whose logits are wanted.
"""

import math

import torch
import torch.nn.functional as F

HEAD_SIZE = 64
WKV_CHUNK = 16
FFN_RATIO = 3.5


def rms(x):
    return x / (x.square().mean(-1, keepdim=True).sqrt() + 1e-8)


def previous(x, first=None):
    """Row t becomes row t-1; `first` [batch, 1, dim] stands before row 0, zeros if None."""
    first = torch.zeros_like(x[:, :1]) if first is None else first
    return torch.cat([first, x[:, :-1]], 1)


def wkv(r, k, v, log_decay, state):
    """y_t = r_t S_t, S_{t+1} = diag(exp(log_decay_t)) S_t + k_t^T v_t, in chunks.

    r, k, v, log_decay [batch, heads, time, 64]; state S_0 [batch, heads, key, value]. Returns y and the last state.
    """
    batch, heads, time, size = r.shape
    # Within a chunk decays are taken relative to its middle, so exponents stay below `reach` in magnitude: no overflow.
    # A channel that decays faster than the limit has forgotten everything after one step anyhow.
    reach = 70.0 if r.dtype == torch.float32 else 600.0
    log_decay = log_decay.clamp(min=-2 * reach / WKV_CHUNK)
    padding = -time % WKV_CHUNK
    if padding:  # A padded row has k = 0 and no decay: it leaves the state as it is.
        r, k, v, log_decay = (F.pad(x, (0, 0, 0, padding)) for x in (r, k, v, log_decay))
    r, k, v, log_decay = (x.reshape(batch, heads, -1, WKV_CHUNK, size) for x in (r, k, v, log_decay))

    lower = torch.ones(WKV_CHUNK, WKV_CHUNK, dtype=torch.bool).tril()
    total = lower.to(r.dtype) @ log_decay  # [..., time in chunk, key], this row included
    middle = total[..., -1:, :] / 2
    r = r * (total - log_decay - middle).exp()
    k = k * (middle - total).exp()
    # Filled, not multiplied by zero: what would be the future may overflow.
    within = (r @ k.transpose(-1, -2)).masked_fill(~lower.tril(-1), 0.0)
    added = k.transpose(-1, -2) @ v  # [batch, heads, chunks, key, value]
    half_decay = middle.exp().transpose(-1, -2)

    entering = []
    # unbind, not indexing: the backward pass of n index operations allocates n tensors of the full size.
    for half, new in zip(half_decay.unbind(2), added.unbind(2)):
        entering.append(half * state)
        state = half * (entering[-1] + new)
    y = within @ v + r @ torch.stack(entering, 2)
    return y.reshape(batch, heads, -1, size)[:, :, :time], state


class GoldFinch:
    def __init__(self, tensors):
        self.tensors = tensors
        self.dim = tensors["emb.weight"].shape[1]
        self.heads = self.dim // HEAD_SIZE
        layers = 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("blocks."))
        self.gold_layers = [i for i in range(layers) if f"blocks.{i}.att.time_maa_kv_w1" in tensors]
        self.finch_layers = [i for i in range(layers) if i not in self.gold_layers]

    def norm(self, x, name):
        return F.layer_norm(x, x.shape[-1:], self.tensors[name + ".weight"], self.tensors[name + ".bias"], 1e-5)

    def lora(self, x, name):
        return torch.tanh(x @ self.tensors[name + "_w1"]) @ self.tensors[name + "_w2"]

    def linear(self, x, name):
        return F.linear(x, self.tensors[name + ".weight"])

    def split_heads(self, x):  # [batch, time, dim] -> [batch, heads, time, 64]
        return x.unflatten(-1, (self.heads, HEAD_SIZE)).transpose(1, 2)

    def embed(self, tokens):
        return self.norm(F.embedding(tokens, self.tensors["emb.weight"]), "blocks.0.ln0")

    def finch_time_mix(self, x, shift, state, p):
        t = self.tensors
        dx = previous(x, shift) - x
        hidden = torch.tanh((x + dx * t[p + "time_maa_x"]) @ t[p + "time_maa_w1"])
        hidden = hidden.unflatten(-1, (5, -1)).permute(2, 0, 1, 3).flatten(1, 2)  # [5, batch * time, rank]
        mix = torch.cat([t[p + "time_maa_" + g] for g in ("r", "k", "v", "w", "v2")]).flatten(1)[:, None]  # [5, 1, dim]
        mix = torch.baddbmm(mix, hidden, t[p + "time_maa_w2"]).unflatten(1, x.shape[:2])
        xr, xk, xv, xw, xv2 = torch.addcmul(x, dx, mix).unbind(0)

        log_decay = -(t[p + "time_decay"] + self.lora(xw, p + "time_decay")).exp()
        r = self.linear(xr, p + "receptance")
        k = self.linear(xk, p + "key") * (1 - log_decay.exp())
        v = self.linear(xv, p + "value")
        v2 = self.linear(xv2, p + "value") + self.lora(xv2, p + "time_value2")
        y, state = wkv(*(self.split_heads(a) for a in (r, k, v, log_decay)), state)
        y = y.transpose(1, 2).flatten(2) + v2
        return self.linear(self.norm(y, p + "ln_x"), p + "output"), state

    def channel_mix(self, x, shift, p):
        dx = previous(x, shift) - x
        xk = torch.addcmul(x, dx, self.tensors[p + "time_maa_k"])
        xr = torch.addcmul(x, dx, self.tensors[p + "time_maa_r"])
        hidden = self.linear(xk, p + "key").relu().square()
        return self.linear(xr, p + "receptance").sigmoid() * self.linear(hidden, p + "value")

    def finch_side(self, x, states=None):
        """Embedded tokens to (rows after the last Finch layer, states to go on from)."""
        after = []
        for n, layer in enumerate(self.finch_layers):
            if states:
                att_shift, ffn_shift, state = states[n]
            else:
                att_shift = ffn_shift = None
                state = x.new_zeros(x.shape[0], self.heads, HEAD_SIZE, HEAD_SIZE)
            p = f"blocks.{layer}."
            a = self.norm(x, p + "ln1")
            y, state = self.finch_time_mix(a, att_shift, state, p + "att.")
            x = x + y
            f = self.norm(x, p + "ln2")
            x = x + self.channel_mix(f, ffn_shift, p + "ffn.")
            after.append((a[:, -1:], f[:, -1:], state))
        return x, after

    def compress(self, x):
        return self.linear(x, "w_kv_cache_a")

    def key_values(self, layer, x0, c):
        """Keys and values of one GOLD layer, from all embedded tokens x0 and cache rows c since the start."""
        t, p = self.tensors, f"blocks.{layer}.att."
        kk = rms(self.linear(torch.cat([x0, c], -1), "w_kv_cache_b"))
        xo = rms(x0)
        dkk, dxo = previous(kk) - kk, previous(xo) - xo
        hidden_k, hidden_v = torch.tanh((xo + dxo * t[p + "time_maa_v_cache"]) @ t[p + "time_maa_kv_w1"]).chunk(2, -1)
        k = kk + dkk * (t[p + "time_maa_k"] + hidden_k @ t[p + "time_maa_kv_w2"][0])
        v = xo + dxo * (t[p + "time_maa_v"] + hidden_v @ t[p + "time_maa_kv_w2"][1])
        k = self.norm(k + self.lora(k, p + "time_key"), p + "ln_k")
        v = self.norm(v + self.lora(v, p + "time_value"), p + "ln_v")
        return self.split_heads(k), self.split_heads(v)

    def gold_time_mix(self, x, key_values, p):
        """Rows x are the last ones of the sequence whose keys and values are given."""
        t = self.tensors
        dx = previous(x) - x
        xq = x + dx * (t[p + "time_maa_q"] + self.lora(x + dx * t[p + "time_maa_x"], p + "time_maa_q"))
        q = self.split_heads(self.norm(self.linear(xq, p + "query"), p + "ln_q"))
        k, v = key_values
        scores = q @ k.transpose(-1, -2) / math.sqrt(HEAD_SIZE)
        rows, length = scores.shape[-2:]
        future = torch.ones(rows, length, dtype=torch.bool).triu(length - rows + 1)
        y = scores.masked_fill(future, -math.inf).softmax(-1) @ v
        return self.linear(self.norm(y.transpose(1, 2).flatten(2), p + "ln_x"), p + "output")

    def gold_side(self, x, key_values):
        """The last rows after the Finch side, to logits. `key_values`: one pair a GOLD layer, for all positions."""
        for layer, kv in zip(self.gold_layers, key_values):
            p = f"blocks.{layer}."
            x = x + self.gold_time_mix(self.norm(x, p + "ln1"), kv, p + "att.")
            x = x + self.channel_mix(self.norm(x, p + "ln2"), None, p + "ffn.")
        return self.linear(self.norm(x, "ln_out"), "head")

    def first_gold_row(self, length, rows):
        """Where GOLD has to begin for `rows` exact last rows: every shift in it, two a layer, looks one row back."""
        return max(0, length - rows - 2 * len(self.gold_layers))

    def forward(self, tokens, rows=None, round_cache=lambda c: c):
        """Logits [batch, rows, vocabulary] of the last `rows` positions (all if None)."""
        length = tokens.shape[1]
        rows = rows or length
        x0 = self.embed(tokens)
        x, _ = self.finch_side(x0)
        c = round_cache(self.compress(x))
        key_values = [self.key_values(layer, x0, c) for layer in self.gold_layers]
        return self.gold_side(x[:, self.first_gold_row(length, rows) :], key_values)[:, -rows:]


def initial_tensors(vocabulary, dim, layers, compressed_ratio, generator):
    """Weights as training of this family starts: mixers that change nothing, yet can learn from the first step."""
    tensors = {}
    finch_layers = layers * (compressed_ratio - 1) // compressed_ratio
    channel = torch.arange(dim) / dim
    ffn = int(dim * FFN_RATIO) // 32 * 32

    def orthogonal(out, inner, gain=1.0):
        q, r = torch.linalg.qr(torch.randn(max(out, inner), min(out, inner), generator=generator))
        q = q * r.diagonal().sign()
        return gain * math.sqrt(max(1.0, out / inner)) * (q if out >= inner else q.T).contiguous()

    def uniform(*shape, scale):
        return (torch.rand(*shape, generator=generator) * 2 - 1) * scale

    def norm(name, scale=1.0):
        tensors[name + ".weight"], tensors[name + ".bias"] = torch.full((dim,), scale), torch.zeros(dim)

    def lora(name, rank, groups=()):
        width = rank * (groups[0] if groups else 1)
        tensors[name + "_w1"] = torch.zeros(dim, width)
        tensors[name + "_w2"] = uniform(*groups, rank, dim, scale=0.01)

    tensors["emb.weight"] = uniform(vocabulary, dim, scale=1e-4)
    norm("ln_out")
    tensors["head.weight"] = orthogonal(vocabulary, dim, 0.5)
    for layer in range(layers):
        depth, left = layer / max(1, layers - 1), 1 - layer / layers
        mix = (1 - channel.pow(left)).view(1, 1, dim)
        mix_value = (1 - channel.pow(left) - 0.3 * depth).view(1, 1, dim)
        mix_half = (1 - channel.pow(left / 2)).view(1, 1, dim)
        norm(f"blocks.{layer}.ln1")
        norm(f"blocks.{layer}.ln2")
        if layer == 0:
            norm("blocks.0.ln0")
        p = f"blocks.{layer}.att."
        tensors[p + "time_maa_x"] = mix
        if layer < finch_layers:
            for group, start in (("w", mix), ("k", mix), ("v", mix_value), ("r", mix_half), ("v2", mix_value)):
                tensors[p + "time_maa_" + group] = start
            lora(p + "time_maa", 32, (5,))
            i = torch.arange(dim) / (dim - 1)
            tensors[p + "time_decay"] = (-6 + 5 * i.pow(0.7 + 1.3 * depth)).view(1, 1, dim)
            lora(p + "time_decay", 64)
            tensors[p + "time_faaaa"] = torch.zeros(dim // HEAD_SIZE, HEAD_SIZE)  # Present in the layout, unused.
            for name, gain in (("receptance", 1.0), ("key", 0.1), ("value", 1.0)):
                tensors[p + name + ".weight"] = orthogonal(dim, dim, gain)
            tensors[p + "output.weight"] = torch.zeros(dim, dim)
            lora(p + "time_value2", 64)
        else:
            for group, start in (("q", mix), ("v_cache", mix), ("k", mix), ("v", mix_value)):
                tensors[p + "time_maa_" + group] = start
            lora(p + "time_maa_q", 32)
            lora(p + "time_maa_kv", 32, (2,))
            lora(p + "time_key", 64)
            lora(p + "time_value", 64)
            tensors[p + "query.weight"] = orthogonal(dim, dim)
            tensors[p + "output.weight"] = torch.zeros(dim, dim)
            for name in ("ln_q", "ln_k", "ln_v"):
                norm(p + name)
        norm(p + "ln_x", ((1 + layer) / layers) ** 0.7)
        p = f"blocks.{layer}.ffn."
        tensors[p + "time_maa_k"] = mix
        tensors[p + "time_maa_r"] = mix
        tensors[p + "key.weight"] = orthogonal(ffn, dim)
        tensors[p + "receptance.weight"] = torch.zeros(dim, dim)
        tensors[p + "value.weight"] = torch.zeros(dim, ffn)
    tensors["w_kv_cache_a.weight"] = orthogonal(dim // 16, dim)
    tensors["w_kv_cache_b.weight"] = orthogonal(dim, dim + dim // 16)
    return {name: tensor.clone() for name, tensor in tensors.items()}
