"""Components of a model: all of a kind, or those that an expression names."""

from collections.abc import Iterable

from spex_mech.components.component import Component, group
from spex_mech.components.grammar import GRAMMAR, Kind, Pattern, inside, split_expression
from spex_mech.components.sets import ComponentSet, missing_message
from spex_mech.components.shape import HasShape, ModelShape
from spex_mech.errors import ComponentError, all_problems


def heads(subject: HasShape, layers: Iterable[int] | None = None) -> ComponentSet:
    """All attention heads of the subject (query heads under GQA), or those of some layers."""
    return _all_of("head", subject.shape, layers)


def kv_groups(subject: HasShape, layers: Iterable[int] | None = None) -> ComponentSet:
    """All key/value groups: each ablates all the query heads that share one key/value head."""
    return _all_of("kv", subject.shape, layers)


def mlps(subject: HasShape, layers: Iterable[int] | None = None) -> ComponentSet:
    """All MLP layers, each ablated as its whole output into the residual stream."""
    return _all_of("mlp", subject.shape, layers)


def neurons(subject: HasShape, layers: Iterable[int] | None = None) -> ComponentSet:
    """All MLP neurons (coordinates of the down projection's input), or those of some layers."""
    return _all_of("neuron", subject.shape, layers)


def select(subject: HasShape, expression: str) -> ComponentSet:
    """The components an expression names: names and patterns, separated by commas, in that order.

    ``*`` stands for all, ``0:4`` for 0, 1, 2, 3; ``!`` before a pattern takes its components out again.
    ``select(subject, "a*.h*, m3.n*, !a0.h3")``. Raises `ComponentError` listing every part that names nothing.
    """
    shape, chosen, problems = subject.shape, dict[Component, None](), list[str]()
    for part in split_expression(expression, expression):
        drop, pattern = part.startswith("!"), part.removeprefix("!").strip()
        try:
            found = _expand(pattern, shape)
        except ComponentError as error:
            problems.append(str(error))
            continue
        for component in found:
            chosen.pop(component, None) if drop else chosen.setdefault(component)
    if problems:
        raise ComponentError(
            problems[0]
            if len(problems) == 1
            else all_problems(f"{len(problems)} parts of {expression!r} name nothing:", problems)
        )
    if not chosen:
        raise ComponentError(f"{expression!r} names no component of {shape.describe()}. {GRAMMAR}")
    return ComponentSet(tuple(chosen)).check(shape)


def _all_of(kind: Kind, shape: ModelShape, layers: Iterable[int] | None) -> ComponentSet:
    wanted = range(shape.n_layers) if layers is None else list(layers)
    unknown = [layer for layer in wanted if not 0 <= layer < shape.n_layers]
    if unknown:
        raise ComponentError(f"layers {unknown} do not exist in {shape.describe()}; layers count from 0.")
    return ComponentSet(tuple(Component(kind, layer, i) for layer in wanted for i in range(shape.count(kind, layer))))


def _expand(text: str, shape: ModelShape) -> list[Component]:
    """All components of the model that one pattern names."""
    held = inside(text)
    if held is not None:
        return [group(c for part in split_expression(held, text) for c in _expand(part, shape))]
    pattern = Pattern.parse(text, text)
    found, beyond = list[Component](), False
    layers = pattern.layer_range(shape.n_layers)
    there = _overlap(layers, range(shape.n_layers))
    for layer in there:
        count = shape.count(pattern.kind, layer, pattern.label)
        wanted = pattern.index_range(count)
        real = _overlap(wanted, range(count))
        beyond |= len(real) < len(wanted)
        found += [Component(pattern.kind, layer, i, pattern.position, label=pattern.label) for i in real]
    # 'every layer' means those that have it; a layer or number that is written out must be there
    beyond = pattern.layers != "*" and (beyond or len(there) < len(layers))
    if not found or beyond:
        raise ComponentError(missing_message(f"{text!r} does", shape))
    return found


def _overlap(wanted: range, there: range) -> range:
    return range(max(wanted.start, there.start), max(wanted.start, min(wanted.stop, there.stop)))
