# %% [markdown]
# # Inside a TransformerLens workflow: cache, discover, hooks
#
# The model is a `TransformerBridge`; everything you do with one stays possible before and after.

# %%
import torch

import spex_mech as sm

card = sm.open_card("induction-2l")
model, _ = sm.load_model(card.model_path)  # any TransformerBridge of yours, such as boot_transformers("gpt2")
task = card.task()
tokens = task.prompts.tokens

# %% [markdown]
# First the usual look: which heads attend to the token after the last occurrence of the present one?

# %%
_, cache = model.run_with_cache(tokens)
length = tokens.shape[1] // 2
scores = {
    f"a1.h{head}": cache["blocks.1.attn.hook_pattern"][:, head].diagonal(1 - length, -2, -1).mean().item()
    for head in range(model.cfg.n_heads)
}
print({name: round(score, 2) for name, score in scores.items()})

# %% [markdown]
# Patterns say where heads look. What they *do* together is measured by ablating sets of them.

# %%
found = sm.discover(model, task, components="a*.h*", budget=512, seed=0)
print(found.circuit.top(6))

# %% [markdown]
# The circuit goes back into the model as ordinary `fwd_hooks`: keep its four strongest heads, ablate the other eight to
# the mean that the run used.

# %%
main = found.interactions().query("order == 1")
strongest = [names[0] for names in main.head(4)["components"]]
hooks = sm.hooks(model, keep=strongest, components="a*.h*", task=task)


def logit_diff(logits):
    rows = torch.arange(len(tokens))
    scored = logits[rows, task.positions]
    wrong = scored.gather(1, task.distractors).mean(1)
    return (scored[rows, task.answers] - wrong).mean().item()


with torch.inference_mode():
    intact = logit_diff(model(tokens))
    kept = logit_diff(model.run_with_hooks(tokens, fwd_hooks=hooks))
    nothing = logit_diff(
        model.run_with_hooks(tokens, fwd_hooks=sm.hooks(model, keep=[], components="a*.h*", task=task))
    )
print(f"{intact:.2f} logits intact, {kept:.2f} with {', '.join(strongest)} alone, {nothing:.2f} with no head")

assert "a0.h4" in strongest
assert (kept - nothing) / (intact - nothing) > 0.7
