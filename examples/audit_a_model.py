# %% [markdown]
# # An audit: does the circuit hold on passes it has never seen?
#
# A polynomial that fits is a hypothesis. `audit` spends a second budget on fresh masks: faithfulness at ten sizes, a
# confirmation experiment for each interaction, and the same budget given to simpler methods.

# %%
import tempfile
from pathlib import Path

import spex_mech as sm

folder = Path(tempfile.mkdtemp()) / "induction"
study = sm.open_study("induction-2l")
found = sm.discover(
    study.subject, study.task, components=study.components, budget=300, decoder="proxyspex", seed=0, out=folder
)
audit = sm.audit(found, study.subject, study.task, seed=1, budget=1024, known=study.card.published.nodes)

# %% [markdown]
# What is left of the behaviour with the circuit alone, all other heads ablated, and what was predicted of it:

# %%
circuit = audit.circuit
print(f"{', '.join(circuit.names)}: {circuit.faithfulness:.2f} of the behaviour")
print(f"measured {circuit.value:+.2f} {audit.unit}, predicted {circuit.predicted:+.2f}")

# %% [markdown]
# Which interactions survive an experiment of their own (each pattern of the set in random contexts)?

# %%
for check in audit.interactions[:5]:
    print(
        " × ".join(check.components), f"claimed {check.claimed:+.2f}, measured {check.estimate:+.2f}", check.confirmed()
    )
for caution in audit.cautions:
    print("caution:", caution)

assert audit.fresh.r2 > 0.9
assert circuit.faithfulness > 0.8
assert sum(check.confirmed() for check in audit.interactions) >= 3
