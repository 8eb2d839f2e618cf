# %% [markdown]
# # Latents of an autoencoder, beside heads
#
# Any tensor of a model can be cut into components, and an autoencoder trained on it gives parts of its own: latents,
# ablated like heads, in the same masks. So a run finds heads that read what a latent writes.
#
# The model has two layers and copies repeated tokens: a head of the first layer writes what stood before, a head of the
# second finds it. The autoencoder is trained here, in seconds, on the residual stream between the two.

# %%
import torch
from torch import nn

import spex_mech as sm

study = sm.open_study("induction-2l")
task = study.task
middle = sm.site("blocks.0", name="stream")  # what the first block gives, one feature a part
plain = sm.bind(study.subject, sites=[middle])

# %% [markdown]
# Activations on random repeated tokens, by the site's own hook; then a small sparse autoencoder, from one seed.

# %%
generator = torch.Generator().manual_seed(0)
half = torch.randint(1, plain.shape.d_vocab, (512, 16), generator=generator)
seen = []
module = plain.module.get_submodule("blocks.0")
with module.register_forward_hook(lambda _module, _args, output: seen.append(output[0])):
    plain.forward(torch.cat([half, half], 1), {}, None)
x = seen[0].flatten(0, 1).clone()
mean, scale = x.mean(0), x.std()


def train(count=128, steps=600, sparsity=1.0):
    """Encoder and decoder by Adam; a threshold makes most latents of a token zero."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        read, write = nn.Linear(x.shape[1], count), nn.Linear(count, x.shape[1], bias=False)
    optimizer = torch.optim.Adam([*read.parameters(), *write.parameters()], lr=3e-3)
    for _ in range(steps):
        batch = (x[torch.randint(len(x), (512,), generator=generator)] - mean) / scale
        z = torch.relu(read(batch))
        loss = (write(z) - batch).square().mean() + sparsity * z.sum(1).mean() / x.shape[1]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return read.requires_grad_(False), write.requires_grad_(False)


read, write = train()
encode = lambda t: torch.relu(read((t - mean) / scale))  # noqa: E731
decode = lambda z: write(z) * scale + mean  # noqa: E731

# %% [markdown]
# On the site, its latents are components. What they do not rebuild is kept, so that the intact model is the model; how
# much that is, and how far other values move the logits, is verified when it is bound.

# %%
subject = sm.bind(study.subject, sites=[sm.latents(middle, encode, decode)])
certificate = subject.own_certificates[0]
print(f"{certificate.parts} latents; {certificate.unexplained:.0%} of variance not rebuilt, and kept")

# %% [markdown]
# The latents that vary most, as the decoder writes them, together with the heads of the second layer that copy.

# %%
z = encode(x)
size = z.var(0) * write.weight.square().sum(0)
latents = [f"stream.{i}" for i in size.argsort(descending=True)[:24].tolist()]
heads = ["a1.h0", "a1.h2", "a1.h4"]
found = sm.discover(subject, task, ", ".join([*latents, *heads]), budget=1024, seed=0)
table = found.interactions()[["components", "coefficient", "q_value"]]
print(table.head(12).to_string())

# %% [markdown]
# Pairs of a head and a latent: how much more the head does while the latent is as it was.

# %%
pairs = table[[len(row) == 2 and bool({*row} & {*heads}) and bool({*row} & {*latents}) for row in table["components"]]]
print(pairs.head(6).to_string())

assert certificate.spliced == 0  # the intact model is the model
assert certificate.unexplained < 0.1
assert z.gt(0).float().mean() < 0.4
assert pairs["q_value"].iloc[0] < 1e-3
