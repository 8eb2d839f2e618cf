"""What other tools call the parts of a model: tables by TransformerLens' hook points, sizes for EAP-IG's files."""

from typing import TYPE_CHECKING, Any

from spex_mech.ablation.backends.transformer_lens import BridgeSubject, hook_name
from spex_mech.ablation.binding import bind
from spex_mech.ablation.recipe import compile_recipe
from spex_mech.ablation.subject import Subject
from spex_mech.circuit.graph import Circuit
from spex_mech.components import Component, ComponentSet
from spex_mech.errors import ModelError

if TYPE_CHECKING:
    import pandas as pd


def hook_frame(subject: Any, circuit: Circuit) -> "pd.DataFrame":
    """A circuit's nodes as `Circuit.nodes_frame` has them, one row a part, indexed by TransformerLens names.

    The index is (hook point, number of the head or neuron in it), such as ``("blocks.9.attn.hook_z", 6)``; a whole MLP
    or attention has number -1, a group one row for each of its members. Raises `ModelError` as `hooks` does.
    """
    bound = transformer_lens_of(bind(subject))
    circuit.components.check(bound.shape)
    frame = circuit.nodes_frame().set_index("component", drop=False)
    places = [
        (place, node.name) for node in circuit.nodes for atom in node.component.atoms for place in _at(bound, atom)
    ]
    import pandas as pd

    index = pd.MultiIndex.from_tuples([place for place, _ in places] or [("", 0)], names=["hook", "number"])
    return frame.loc[[name for _, name in places]].set_index(index[: len(places)])


def hook_interactions(subject: Any, circuit: Circuit) -> "pd.DataFrame":
    """A circuit's interactions as `Circuit.frame` has them, one row a part of a member, indexed as `hook_frame` is.

    The column ``interaction`` counts the interactions, strongest first; rows of the same number are one interaction.
    ``frame.loc[("blocks.9.attn.hook_z", 6)]`` is everything that head 9.6 takes part in. Raises as `hook_frame` does.
    """
    bound = transformer_lens_of(bind(subject))
    circuit.components.check(bound.shape)
    import pandas as pd

    atoms = {node.name: node.component.atoms for node in circuit.nodes}
    members = [(i, name) for i, one in enumerate(circuit.interactions) for name in one.components]
    places = [(place, i, name) for i, name in members for atom in atoms[name] for place in _at(bound, atom)]
    frame = circuit.frame().iloc[[i for _, i, _ in places]]
    frame.insert(0, "interaction", [i for _, i, _ in places])
    frame.insert(1, "member", [name for _, _, name in places])
    index = pd.MultiIndex.from_tuples([place for place, _, _ in places] or [("", 0)], names=["hook", "number"])
    return frame.set_index(index[: len(places)])


def mib_config(subject: Any) -> dict[str, Any]:
    """The sizes of a model as EAP-IG's files want them, for ``sm.export(…, to="mib", config=sm.tl.mib_config(model))``.

    Raises `ModelError` where layers have different numbers of heads, which those files cannot say.
    """
    bound = bind(subject)
    heads = sorted(set(bound.shape.heads))
    widths = [site.parts * site.width for site in bound.sites if site.kind in ("heads", "mlp")]
    if len(heads) != 1 or not heads[0]:
        raise ModelError(f"EAP-IG's files have one number of heads a layer; {bound.shape.describe()} has {heads}.")
    model = getattr(bound, "model", None)
    settings = getattr(model, "cfg", None) or getattr(model, "config", None)
    parallel = any(bool(getattr(settings, name, False)) for name in ("parallel_attn_mlp", "use_parallel_residual"))
    width = int(getattr(settings, "d_model", 0) or getattr(settings, "hidden_size", 0) or widths[-1])
    return {"n_layers": bound.shape.n_layers, "n_heads": heads[0], "d_model": width, "parallel_attn_mlp": parallel}


def transformer_lens_of(subject: Subject) -> BridgeSubject:
    """The subject, if it was bound through TransformerLens; else a `ModelError`."""
    if not isinstance(subject, BridgeSubject):
        raise ModelError(
            f"{subject.shape.describe()} was not bound through TransformerLens, so it has none of its hook points. "
            "Use sm.ablated, which works with every model."
        )
    return subject


def _at(subject: BridgeSubject, atom: Component) -> list[tuple[str, int]]:
    """The hook point and numbers of one part."""
    recipe = compile_recipe(ComponentSet((atom,)), subject.sites, subject.shape)
    found = []
    for site in recipe.sites:
        tables = recipe.rulers[site].values()
        parts = sorted({int(p) for table in tables for p in (table < 1).any(0).nonzero()[:, 0]})
        found += (
            [(hook_name(site), p) for p in parts] if atom.kind in ("head", "kv", "neuron") else [(hook_name(site), -1)]
        )
    return found
