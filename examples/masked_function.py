# %% [markdown]
# # A decoder for someone else's masked function
#
# The decoders know nothing of models. Whatever takes a set of things to keep and returns numbers can be decoded:
# words of a prompt, training examples, sensors. Here a function of 40 things that all but seven ignore.

# %%
from spex_mech.walsh.decoding import Samples
from spex_mech.walsh.joint.joint import Joint
from spex_mech.walsh.masks.design import MaskDesign
from spex_mech.walsh.spectrum import Basis


def valuable(keep):
    """Not ours: 3 for having 4, 7 and 19 together, 2 for having 30 or 31, 1 for 5, 0.5 less for 11."""
    k = keep.double()
    return 3 * k[:, 4] * k[:, 7] * k[:, 19] + 2 * (k[:, 30] + k[:, 31] - k[:, 30] * k[:, 31]) + k[:, 5] - k[:, 11] / 2


# %% [markdown]
# Draw masks, ask the function, decode. 500 of the 2⁴⁰ possible sets are enough.

# %%
design = MaskDesign.bernoulli(40, 500, 0.5, seed=0)
keep = design.keep()
decoded = Joint().decode(Samples(keep, valuable(keep)[:, None], design), seed=0)
print(decoded.outcome.name, f"R² {decoded.stats['heldout_r2']:.4f} on masks that nothing was fitted to")

# %% [markdown]
# The same polynomial in terms of what each set adds to an empty start (Möbius) is the function as it was written.

# %%
started = decoded.spectrum.rewrite(Basis("mobius"))
terms = {members: round(value, 2) for members, value in started.terms() if abs(value) > 0.05}
print(terms)

assert terms == {(4, 7, 19): 3.0, (30,): 2.0, (31,): 2.0, (30, 31): -2.0, (5,): 1.0, (11,): -0.5}
