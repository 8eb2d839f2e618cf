# %% [markdown]
# # Inside an nnsight workflow
#
# A Hugging Face model wrapped by nnsight is traced as ever; `spex_mech` binds the wrapper and leaves it as it was.

# %%
import torch
from nnsight import NNsight, save
from transformers import GPT2Config, GPT2LMHeadModel

import spex_mech as sm

torch.manual_seed(0)
config = GPT2Config(vocab_size=60, n_embd=32, n_layer=2, n_head=4, n_positions=32, initializer_range=0.3)
model = NNsight(GPT2LMHeadModel(config).eval())  # random weights: nothing to download; yours come from the hub
task = sm.tasks.induction(60, n=8, length=8, seed=0)
tokens = task.prompts.tokens

# %% [markdown]
# A trace of your own: what goes into the output projection of layer 1, head after head.

# %%
with torch.no_grad(), model.trace(tokens):
    heads = save(model.transformer.h[1].attn.c_proj.input)
print("layer 1, heads side by side:", tuple(heads.shape))

# %% [markdown]
# All 2⁸ sets of the eight heads fit into the budget, so they are all measured and the polynomial is exact.

# %%
found = sm.discover(model, task, components="a*.h*", budget=256, replacement="zero")
print(found.interactions().head(5).to_string(columns=["components", "coefficient", "kind"]))

# %% [markdown]
# Back in nnsight: the same ablation by hand, in a trace, gives the same number.

# %%
keep = torch.ones(8, dtype=torch.bool)
keep[found.components.indices(["a0.h1", "a1.h2"])] = False
with torch.no_grad(), model.trace(tokens):
    model.transformer.h[0].attn.c_proj.input[:, :, 8:16] = 0
    model.transformer.h[1].attn.c_proj.input[:, :, 16:24] = 0
    logits = save(model.output.logits)
scored = logits[torch.arange(8), task.positions]
by_hand = (scored.gather(1, task.answers[:, None])[:, 0] - scored.gather(1, task.distractors).mean(1)).mean().item()
predicted = found.predict(keep[None]).item()
print(f"a0.h1 and a1.h2 zeroed: {by_hand:.5f} by hand, {predicted:.5f} by the polynomial")

assert abs(by_hand - predicted) < 1e-4
