# %% [markdown]
# # Bring your own module
#
# A TransformerLens bridge, a Hugging Face causal model or an nnsight wrapper binds by itself. Anything else needs four
# things: its shape, its sites, where it came from, and a forward pass that applies an edit at each site.

# %%
import torch
from torch import nn

import spex_mech as sm
from spex_mech.ablation.subject import Site
from spex_mech.components import ModelShape


class Mixer(nn.Module):
    """A model of no library: two layers of four "heads" that each write to a shared state."""

    def __init__(self):
        super().__init__()
        self.read = nn.Embedding(10, 16)
        self.heads = nn.ModuleList(nn.Linear(16, 16, bias=False) for _ in range(2))
        self.write = nn.ModuleList(nn.Linear(16, 16, bias=False) for _ in range(2))
        self.out = nn.Linear(16, 10)


# %%
class MixerSubject:
    """What `spex_mech` asks of a model: see `spex_mech.ablation.subject.Subject`."""

    device = torch.device("cpu")

    def __init__(self, model):
        self.model = model
        self.sites = tuple(Site(layer, "heads", parts=4, width=4) for layer in range(2))
        self.shape = ModelShape("mixer", (4, 4), (4, 4), (False, False), (0, 0), d_vocab=10)
        self.provenance = {"model": "mixer", "backend": "own", "weights_sha256": "not hashed"}

    @torch.inference_mode()
    def forward(self, tokens, edits, positions=None):
        state = self.model.read(tokens).cumsum(1)
        for layer, site in enumerate(self.sites):
            inside = torch.tanh(self.model.heads[layer](state))  # [row, pos, 4 heads × 4]
            state = state + self.model.write[layer](edits[site](inside) if site in edits else inside)
        logits = self.model.out(state)
        return logits if positions is None else logits[torch.arange(len(tokens)), positions]


# %% [markdown]
# From here on it is a model like any other.

# %%
torch.manual_seed(1)
subject = MixerSubject(Mixer().eval())
tokens = torch.randint(0, 10, (6, 5)).tolist()
task = sm.Task(tokens, answers=[1] * 6, distractors=[[2, 3]] * 6)
found = sm.discover(subject, task, components="a*.h*", budget=256)
print(found.interactions().head(5).to_string(columns=["components", "coefficient", "kind"]))

with sm.ablated(subject, keep="a0.h*", components="a*.h*", task=task) as run:
    changed = run(torch.tensor(tokens))

keep = torch.tensor([[True] * 4 + [False] * 4])
scored = changed[:, -1]
value = (scored[:, 1] - scored[:, 2:4].mean(1)).mean()
assert abs(found.predict(keep).item() - value.item()) < 1e-4  # all 256 sets were measured: the polynomial is exact
