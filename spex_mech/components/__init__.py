"""Components of a transformer, their names, and ordered sets of them.

A component is what is kept or ablated as one. Its name is the one MIB and EAP-IG files use, extended:

    a9.h6        attention head 6 of layer 9          a9.kv1       key/value group 1 of layer 9 (all its query heads)
    a9           the attention of layer 9             m3           the MLP of layer 3 (its output, bias included)
    m3.n417      MLP neuron 417 of layer 3            a9.h6@p-1    the head at one position (here the last) only
    m3.e5        expert 5 of layer 3's mixture        m3.shared    what its MLP gives beside its experts
    adapter      an adapter (adapter:NAME where several act; adapter.3 in layer 3 only)
    resid.5      part 5 of a site of the user's own
    [m3.n0:64]   a group that is ablated as one
    s2, t5       segment 2 and token 5 of a prompt: parts of an input, which no model has by itself
    d7           training example (or group of examples) 7, of a model that is trained anew

Names are parsed and printed here and nowhere else. Bit i is component i is column i, everywhere.
"""

from spex_mech.components.component import Component, group
from spex_mech.components.grammar import MAX_ATOMS
from spex_mech.components.selection import heads, kv_groups, mlps, neurons, select
from spex_mech.components.sets import ComponentSet
from spex_mech.components.shape import HasShape, ModelShape

__all__ = [
    "MAX_ATOMS",
    "Component",
    "ComponentSet",
    "HasShape",
    "ModelShape",
    "group",
    "heads",
    "kv_groups",
    "mlps",
    "neurons",
    "select",
]
