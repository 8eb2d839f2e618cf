"""A stand-in for `HookedTransformer` of TransformerLens 2.x and 3.x, which version 4 no longer has.

Its hook points, parameter names and shapes, ``cfg`` and ``hooks``, written after its documentation on the parts that
version 4 still ships (`HookPoint`, `HookedRootModule`). `tests/test_legacy.py` compares it with the real class where
that can be imported.
"""

from types import SimpleNamespace

import torch
from torch import nn


def config(**changes):
    """The sizes of the tiny models of these tests."""
    sizes = {"n_layers": 2, "n_heads": 4, "d_model": 32, "d_head": 8, "d_mlp": 48, "n_ctx": 64, "d_vocab": 50}
    return {**sizes, "act_fn": "gelu_new", "eps": 1e-5, "attn_only": False, **changes}


def legacy_hooked(**changes):
    """The stand-in, with all weights zero; load them from a state dict with HookedTransformer's names."""
    from transformer_lens.hook_points import HookPoint

    try:
        from transformer_lens import HookedRootModule
    except ImportError:  # where versions before 4 have it
        from transformer_lens.hook_points import HookedRootModule

    def parameter(*shape):
        return nn.Parameter(torch.zeros(*shape))

    class Attention(nn.Module):
        def __init__(self, cfg):
            super().__init__()
            for name in "QKV":
                setattr(self, f"W_{name}", parameter(cfg.n_heads, cfg.d_model, cfg.d_head))
                setattr(self, f"b_{name}", parameter(cfg.n_heads, cfg.d_head))
            self.W_O, self.b_O = parameter(cfg.n_heads, cfg.d_head, cfg.d_model), parameter(cfg.d_model)
            self.hook_q, self.hook_k, self.hook_v, self.hook_z = (HookPoint() for _ in range(4))
            self.hook_attn_scores, self.hook_pattern = HookPoint(), HookPoint()

        def forward(self, x):
            q, k, v = (
                hook(torch.einsum("bpm,hmd->bphd", x, getattr(self, f"W_{n}")) + getattr(self, f"b_{n}"))
                for n, hook in zip("QKV", (self.hook_q, self.hook_k, self.hook_v), strict=True)
            )
            scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / q.shape[-1] ** 0.5
            later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
            pattern = self.hook_pattern(self.hook_attn_scores(scores.masked_fill(later, -torch.inf)).softmax(-1))
            z = self.hook_z(torch.einsum("bhqk,bkhd->bqhd", pattern, v))
            return torch.einsum("bphd,hdm->bpm", z, self.W_O) + self.b_O

    class MLP(nn.Module):
        def __init__(self, cfg):
            super().__init__()
            self.W_in, self.b_in = parameter(cfg.d_model, cfg.d_mlp), parameter(cfg.d_mlp)
            self.W_out, self.b_out = parameter(cfg.d_mlp, cfg.d_model), parameter(cfg.d_model)
            self.hook_pre, self.hook_post = HookPoint(), HookPoint()

        def forward(self, x):
            hidden = nn.functional.gelu(self.hook_pre(x @ self.W_in + self.b_in), approximate="tanh")
            return self.hook_post(hidden) @ self.W_out + self.b_out

    class Norm(nn.Module):
        def __init__(self, cfg):
            super().__init__()
            self.w, self.b, self.eps = parameter(cfg.d_model), parameter(cfg.d_model), cfg.eps

        def forward(self, x):
            return nn.functional.layer_norm(x, x.shape[-1:], self.w, self.b, self.eps)

    class Block(nn.Module):
        def __init__(self, cfg):
            super().__init__()
            self.ln1, self.attn, self.ln2, self.mlp = Norm(cfg), Attention(cfg), Norm(cfg), MLP(cfg)
            self.hook_resid_pre, self.hook_resid_post = HookPoint(), HookPoint()
            self.hook_attn_out, self.hook_mlp_out = HookPoint(), HookPoint()

        def forward(self, x):
            x = self.hook_resid_pre(x)
            x = x + self.hook_attn_out(self.attn(self.ln1(x)))
            return self.hook_resid_post(x + self.hook_mlp_out(self.mlp(self.ln2(x))))

    class Embed(nn.Module):
        def __init__(self, name, rows, cols):
            super().__init__()
            setattr(self, name, parameter(rows, cols))

    class Unembed(nn.Module):
        def __init__(self, cfg):
            super().__init__()
            self.W_U, self.b_U = parameter(cfg.d_model, cfg.d_vocab), parameter(cfg.d_vocab)

        def forward(self, x):
            return x @ self.W_U + self.b_U

    class Legacy(HookedRootModule):
        def __init__(self, cfg):
            super().__init__()
            self.cfg = cfg
            self.embed = Embed("W_E", cfg.d_vocab, cfg.d_model)
            self.pos_embed = Embed("W_pos", cfg.n_ctx, cfg.d_model)
            self.blocks = nn.ModuleList(Block(cfg) for _ in range(cfg.n_layers))
            self.ln_final, self.unembed = Norm(cfg), Unembed(cfg)
            self.setup()

        def forward(self, tokens):
            x = self.embed.W_E[tokens] + self.pos_embed.W_pos[: tokens.shape[1]]
            for block in self.blocks:
                x = block(x)
            return self.unembed(self.ln_final(x))

    cfg = SimpleNamespace(**config(**changes))
    return Legacy(cfg)


def from_gpt2(model):
    """A tiny GPT-2's weights under HookedTransformer's names, nothing folded or centred."""
    cfg, inner = model.config, model.transformer
    heads, d_model = cfg.n_head, cfg.n_embd
    weights = {"embed.W_E": inner.wte.weight, "pos_embed.W_pos": inner.wpe.weight}
    for layer, block in enumerate(inner.h):
        name = f"blocks.{layer}"
        for part, w, b in zip(
            "QKV", block.attn.c_attn.weight.chunk(3, 1), block.attn.c_attn.bias.chunk(3), strict=True
        ):
            weights[f"{name}.attn.W_{part}"] = w.reshape(d_model, heads, -1).transpose(0, 1)
            weights[f"{name}.attn.b_{part}"] = b.reshape(heads, -1)
        weights[f"{name}.attn.W_O"] = block.attn.c_proj.weight.reshape(heads, -1, d_model)
        weights[f"{name}.attn.b_O"] = block.attn.c_proj.bias
        weights |= {f"{name}.mlp.W_in": block.mlp.c_fc.weight, f"{name}.mlp.b_in": block.mlp.c_fc.bias}
        weights |= {f"{name}.mlp.W_out": block.mlp.c_proj.weight, f"{name}.mlp.b_out": block.mlp.c_proj.bias}
        for ours, theirs in (("ln1", block.ln_1), ("ln2", block.ln_2)):
            weights |= {f"{name}.{ours}.w": theirs.weight, f"{name}.{ours}.b": theirs.bias}
    weights |= {"ln_final.w": inner.ln_f.weight, "ln_final.b": inner.ln_f.bias}
    weights |= {"unembed.W_U": model.lm_head.weight.T, "unembed.b_U": torch.zeros(cfg.vocab_size)}
    return {key: value.detach().clone() for key, value in weights.items()}
