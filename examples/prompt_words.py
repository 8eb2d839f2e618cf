# %% [markdown]
# # Which words of a prompt matter together
#
# `discover_features` asks of a prompt what `discover` asks of a model. What is explained is any function from texts to
# numbers: here a toy judge of reviews; it might be a classifier, or a model behind an API.

# %%
from itertools import pairwise

import spex_mech as sm

REVIEW = "The plot is not good at all , but the music is nice and the last scene is good ."


def judge(texts):
    """Praise counts, unless 'not' stands right before it."""
    values = []
    for text in texts:
        words = text.split()
        turned = sum(one == "not" and other == "good" for one, other in pairwise(words))
        values.append(1.0 * words.count("good") + 0.5 * words.count("nice") - 2.0 * turned)
    return values


# %% [markdown]
# Every word is a component, `s0`, `s1` and so on; its text is the node's role. Replacing a word by a blank keeps the
# others in their places.

# %%
found = sm.discover_features(judge, REVIEW, ablation="replace", filler="…", budget=512, seed=0)
words = dict(zip(found.components.names, REVIEW.split(), strict=True))
for row in found.interactions().itertuples():
    print(f"{' × '.join(words[name] for name in row.components):12} {row.coefficient:+.2f} {row.kind}")

# %% [markdown]
# The report shows the text, its words coloured by their effects, with arcs between those that act together.

# %%
page = sm.report(found)
page.save("review.html")

pairs = [i for i in found.circuit.interactions if i.order == 2]
assert [tuple(words[name] for name in i.components) for i in pairs] == [("not", "good")]
assert pairs[0].coefficient < 0
assert found.heldout_r2 > 0.99
