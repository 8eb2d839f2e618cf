# %% [markdown]
# # Does this head matter only where that word is?
#
# A two-layer transformer continues repeated sequences: it finds the first copy of the last token and says what came
# after it. Heads and parts of the prompt are ablated together, so that what is found says which heads need which parts.

# %%
import torch

import spex_mech as sm

study = sm.open_study("induction-2l")
generator = torch.Generator().manual_seed(0)


def sequence():
    """Sixteen different tokens."""
    return torch.randperm(48, generator=generator)[:16].tolist()


# %% [markdown]
# The prompt is a sequence and the first six tokens of its second round; asked is the seventh. Ablated parts are
# replaced by tokens of another sequence, in their places.

# %%
sequences = [sequence() for _ in range(8)]
task = sm.Task(
    tokens=[s + s[:6] for s in sequences],
    answers=[s[6] for s in sequences],
    distractors=[[s[10], s[12]] for s in sequences],
    corrupt=[sequence() + s[:6] for s in sequences],  # of the last round only the first copy changes
)
parts = {"s0": "before", "s1": "the last token's first copy", "s2": "the answer's first copy", "s3": "after"}
subject = sm.with_prompt(study.subject, task, [(0, 5), (5, 6), (6, 7), (7, 16)])
found = sm.discover(subject, task, components="a*.h*, s*", budget=1024, seed=0)

# %%
frame = found.interactions()
both = frame[[any(n in parts for n in row) and any(n not in parts for n in row) for row in frame["components"]]]
for row in both.head(8).itertuples():
    print(f"{' × '.join(row.components):24} {row.coefficient:+.2f} {row.kind}")
print("held-out R²", round(found.heldout_r2, 3))

# %% [markdown]
# The strongest: the previous-token head a0.h4, together with both tokens of the first round that matter. It writes
# "after the last token's first copy" where the answer's first copy stands, so it has nothing to say where either is
# gone. The heads of the second layer read it there, and act jointly with the answer's first copy.

# %%
strongest, second = both.iloc[0], both.iloc[1]
assert set(strongest["components"]) == {"a0.h4", "s1", "s2"}
assert strongest["kind"] == "synergy"
assert second["components"][0].startswith("a1.")
assert second["components"][1] == "s2"
