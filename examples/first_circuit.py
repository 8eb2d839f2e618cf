# %% [markdown]
# # A first circuit in fifteen lines
#
# A two-layer transformer continues repeated random sequences. Which of its twelve attention heads do that *together*?

# %%
import spex_mech as sm
from spex_mech.gallery.studies import true_spectrum

study = sm.open_study("induction-2l")  # a model that ships with the project, its prompts, its heads
found = sm.discover(study.subject, study.task, components=study.components, budget=512, seed=0)
table = found.interactions()
print(table.head(8).to_string(columns=["components", "coefficient", "stderr", "kind", "knockout"]))
print(f"R² on masks that nothing was fitted to: {found.heldout_r2:.3f}")

# %% [markdown]
# The strongest pair is the previous-token head of layer 0 with an induction head of layer 1: a *synergy*, since either
# is worth little without the other. The card ships the measured values of all 4,096 masks, so that can be checked.

# %%
truth = true_spectrum(study.card)
pair = table[table["order"] == 2].iloc[0]
exact = truth.get(study.components.indices(pair["components"]))
print(f"{' × '.join(pair['components'])}: found {pair['coefficient']:+.3f}, exactly {exact:+.3f}")

assert found.heldout_r2 > 0.9
assert pair["kind"] == "synergy"
assert abs(pair["coefficient"] - exact) < 0.1
