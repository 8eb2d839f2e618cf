# %% [markdown]
# # Backup heads that single ablation misses
#
# A small transformer ends "Ann and Bob went to the shop. Bob gave a book to" with Ann. It was trained with head
# dropout, so it cannot count on any one head. Ablate its heads one at a time and little happens: a ranking by single
# ablation calls them all minor. Sets of ablations tell otherwise.

# %%
import torch

import spex_mech as sm

study = sm.open_study("names-3l")  # 12 heads; `examples/train_names.py` made it
subject, task, names = study.subject, study.task, study.components.names
tokens = task.prompts.tokens


def behaviour(ablate):
    """The mean logit difference, right name over the other one, with some heads ablated to their mean."""
    with sm.ablated(subject, ablate=ablate, task=task) as run:
        logits = run(tokens)[torch.arange(len(tokens)), task.positions]
    return (logits.gather(1, task.answers[:, None]) - logits.gather(1, task.distractors)).mean().item()


# %% [markdown]
# Single ablation: each head out in turn.

# %%
intact = behaviour([])
effects = {name: intact - behaviour([name]) for name in names}
print(f"intact {intact:.2f}; largest effect of ablating one head {max(effects.values()):.2f}")

# %% [markdown]
# From all 4,096 sets of the twelve heads: a group of backups, found without being told where to look. (With more heads,
# random sets do; `discover` takes them when they do not all fit the budget.)

# %%
found = sm.discover(subject, task, components=study.components, budget=4096, seed=0)
group = sm.find_backups(found.spectrum, found.components)[0]
alone = ", ".join(f"{cost:.2f}" for cost in group.single)
print(" × ".join(group.components), f"losing all costs {group.joint:.2f}, losing one {alone}")

# %% [markdown]
# Measured: without the group next to nothing is left, although no head of it costs much alone. They are
# the four heads of the first layer, each of which can tell which name was mentioned last.

# %%
without = behaviour(group.components)
print(
    f"without all of them {without:.2f}; the sum of their single effects {sum(effects[n] for n in group.components):.2f}"  # noqa: E501
)

assert max(effects.values()) < 0.15 * intact
assert without < 0.1 * intact
assert set(group.components) == {"a0.h0", "a0.h1", "a0.h2", "a0.h3"}
