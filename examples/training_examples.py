# %% [markdown]
# # Which training examples matter together
#
# A classifier is trained on many parts of its data. What is explained is what it then says of two test points; near
# duplicates show as a redundancy, examples that only teach something together as a synergy. Needs scikit-learn.

# %%
import numpy as np
from sklearn.datasets import load_wine
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

import spex_mech as sm

x, y = load_wine(return_X_y=True)
x, y = StandardScaler().fit_transform(x[y < 2]), y[y < 2]
generator = np.random.default_rng(0)
chosen = generator.permutation(len(x))[:26]
x, y = np.hstack([x[chosen], np.zeros((26, 3))]), y[chosen]

# %% [markdown]
# Four examples are planted. 3 and 9 are near-duplicates that bear a mark no other wine has. 5 and 17 bear a second mark
# under a strong third one of opposite signs, so that only both together tell what the second means.

# %%
x[[3, 5, 17]] *= 0.3
x[3, 13] = 3
x[9] = x[3] + generator.normal(0, 0.02, 16)
x[5, 14:], x[17, 14:] = (1.5, 4), (1.5, -4)
y[[3, 9, 5, 17]] = 1
tests = np.zeros((2, 16))
tests[[0, 1], [13, 14]] = 3  # a wine with the first mark and nothing else, and one with the second

# %%
found = sm.discover_data(
    LogisticRegression(C=10, max_iter=1000), x, y, test_x=tests, test_y=[1, 1], budget=256, link="identity"
)
print(found.interactions()[["components", "coefficient", "kind"]].head(8).to_string(index=False))

# %% [markdown]
# The stand-in, ridge regression in closed form, takes no training and finds the same two pairs here. It says what a
# linear model would learn from these examples, no more.

# %%
quick = sm.discover_data("linear", x, y, test_x=tests, test_y=[1, 1], budget=256, link="identity")
pairs = [[(i.components, i.kind) for i in run.circuit.interactions if i.order == 2][:2] for run in (found, quick)]
assert pairs[0] == pairs[1] == [(("d3", "d9"), "redundancy"), (("d5", "d17"), "synergy")]
