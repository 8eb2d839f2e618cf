# %% [markdown]
# # Backup heads that single ablation misses
#
# Three components each suffice for the behaviour. Ablate one at a time and nothing happens, so a ranking by single
# ablation calls all three idle. Sets of ablations tell otherwise.

# %%
import torch

import spex_mech as sm

study = sm.open_study("planted-or")  # its function is known: any of a0.h0, a1.h1, m0.n2 is enough
subject, task, names = study.subject, study.task, study.components.names
tokens = task.prompts.tokens


def behaviour(ablate):
    """The mean logit difference with some components ablated to their mean."""
    with sm.ablated(subject, ablate=ablate, task=task) as run:
        logits = run(tokens)[torch.arange(len(tokens)), task.positions]
    return (logits.gather(1, task.answers[:, None]) - logits.gather(1, task.distractors)).mean().item()


# %% [markdown]
# Single ablation: each component out in turn.

# %%
intact = behaviour([])
effects = {name: intact - behaviour([name]) for name in names}
print(f"intact {intact:.2f}; largest effect of ablating one component {max(effects.values()):.4f}")

# %% [markdown]
# From 300 random sets: a group of backups, found without being told where to look.

# %%
found = sm.discover(subject, task, components=study.components, budget=300, seed=0)
groups = sm.find_backups(found.spectrum, found.components)
for group in groups:
    alone = ", ".join(f"{cost:.2f}" for cost in group.single)
    print(" × ".join(group.components), f"losing all costs {group.joint:.2f}, losing one {alone}")

trio = ["a0.h0", "a1.h1", "m0.n2"]
print(f"measured: {behaviour(trio):.2f} without all three")

assert max(map(abs, effects.values())) < 1e-4
assert intact - behaviour(trio) > 1
assert set(trio) in [set(group.components) for group in groups]
