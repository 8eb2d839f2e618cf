"""Circuits of EAP-IG and of the MIB benchmark: their JSON, both ways.

``{"cfg": {n_layers, n_heads, parallel_attn_mlp, d_model}, "nodes": {"input" | "a{l}.h{h}" | "m{l}" | "logits":
{"in_graph", "score"}}, "edges": {"a0.h0->m0", "m0->a1.h3<q>", …: {"score", "in_graph"}}}``. A node without a score (or
with NaN) was not scored and always stays in the model; that is how components that were not studied are written.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any

from spex_mech.circuit.graph import Circuit
from spex_mech.circuit.node_scores import node_scores
from spex_mech.circuit.nodes import Node
from spex_mech.components import Component, ComponentSet
from spex_mech.errors import FormatError, SpexMechError, all_problems
from spex_mech.files.json import json_text, read_object
from spex_mech.files.schema import Open, Reading, between, checked

MAX_EDGES = 500_000  # of a whole model that are written; beyond, none, which circuits of nodes do without
MAX_FILE = 256 << 20  # bytes: models of eight billion parameters have a million edges and more
_NAME = re.compile(r"input|logits|m\d{1,4}|a\d{1,4}\.h\d{1,4}")
_EDGE_NAME = re.compile(r"(input|m\d{1,4}|a\d{1,4}\.h\d{1,4})->(logits|m\d{1,4}|a\d{1,4}\.h\d{1,4})(?:<([qkv])>)?")


@dataclass(frozen=True)
class _Config(Open):
    n_layers: Annotated[int, between(1, 1000)]
    n_heads: Annotated[int, between(1, 1000)]
    parallel_attn_mlp: bool | None = None
    d_model: Annotated[int, between(1, 1_000_000)] | None = None


@dataclass(frozen=True)
class _MibFile(Open):
    cfg: _Config
    nodes: Mapping[str, Any]
    edges: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _NodeRow(Open):
    in_graph: bool
    score: float | None = None
    neurons: tuple[bool, ...] = ()


@dataclass(frozen=True)
class _EdgeRow(Open):
    score: float | None
    in_graph: bool = False


def to_mib(circuit: Circuit, *, config: Mapping[str, Any] | None = None) -> str:
    """The circuit at node level: the studied heads and MLPs with `node_scores`, all others without a score.

    Edges are listed without scores of their own; of models with more than 500,000 of them, none is.

    Args:
        config: ``{"n_layers", "n_heads", "d_model", "parallel_attn_mlp"}`` of the model (`mib_config` of a bound
            subject); not needed for a circuit that was read from this format.

    Raises `FormatError`: no config, one that is wrong, or components that are no whole head or MLP of such a model.
    """
    cfg = _check_config(circuit.evidence.get("cfg") if config is None else config)
    names = list(_all_nodes(cfg))
    strange = [name for name in circuit.components.names if name not in set(names)]
    if strange:
        raise FormatError(
            f"EAP-IG's nodes are the heads and MLPs of {cfg['n_layers']} layers of {cfg['n_heads']} heads; "
            f"{', '.join(strange[:8])}{' …' if len(strange) > 8 else ''} have no place in its files. Study whole heads "
            "and MLPs, or export to hif or json."
        )
    scores, kept = node_scores(circuit), set(circuit.names)
    inside = {name for name in names if name in kept or name not in circuit.components}
    nodes: dict[str, dict[str, Any]] = {}
    for name in names:
        score = {"score": scores[name]} if name in scores else {}
        nodes[name] = {"in_graph": name in inside, **score}
    edges = {
        edge: {"score": 0.0, "in_graph": one in inside and other in inside}
        for edge, one, other in (_all_edges(cfg) if _count_edges(cfg) <= MAX_EDGES else ())
    }
    return json_text({"cfg": cfg, "nodes": nodes, "edges": edges}, indent=None)


def read_mib(path: str | Path) -> Circuit:
    """A circuit from EAP-IG's or MIB's JSON: its nodes are those in the graph, its components all that were scored.

    It has no interactions; its scores are in ``evidence["scores"]``. Files with scores of edges alone give a node the
    sum over its outgoing edges, which for attribution by gradients is the node's own attribution. Which edges were in
    the graph is lost: here a component is kept or ablated as a whole.

    Raises:
        FormatError: the file cannot be trusted (see `files.json.read_json`), fields are missing or wrong, names do
            not fit the model of ``cfg``, or single coordinates of a node are in the graph; all problems at once.
    """
    record = read_object(path, nan_is_null=True, max_bytes=MAX_FILE)
    return _circuit(record, f"{path} is not a circuit of EAP-IG or MIB:")


def mib_circuit(state: Mapping[str, Any]) -> Circuit:
    """The same from what EAP-IG keeps in ``.pt`` files: ``mib_circuit(torch.load(path, weights_only=True))``.

    Those files are pickles, which this package does not open; load yours with ``weights_only``. EAP-IG writes scores of
    nodes to them alone (its JSON export fails where there are any).

    Args:
        state: ``cfg``, ``src_nodes``, ``dst_nodes``, ``nodes_in_graph [src]``, ``edges_scores [src, dst]``,
            ``edges_in_graph [src, dst]``, and where nodes were scored ``nodes_scores [src]``.

    Raises `FormatError` as `read_mib` does, or where tables do not fit the names.
    """
    plain: dict[str, Any] = {k: value.tolist() if hasattr(value, "tolist") else value for k, value in state.items()}
    sources: Any = plain.get("src_nodes")
    targets: Any = plain.get("dst_nodes")
    tables: dict[str, Any] = {name: plain.get(name) for name in ("edges_scores", "edges_in_graph")}
    rows = {name: plain[name] for name in ("nodes_in_graph", "nodes_scores") if plain.get(name) is not None}
    fits = _is_list(sources) and _is_list(targets) and "nodes_in_graph" in rows
    fits = fits and all(_is_list(row, len(sources)) for row in (*rows.values(), *tables.values()))
    if not fits or not all(_is_list(row, len(targets)) for table in tables.values() for row in table or ()):
        raise FormatError(
            "this is not the state of an EAP-IG graph: it needs names in src_nodes and dst_nodes, nodes_in_graph of as "
            "many sources, and edges_scores and edges_in_graph with one row a source and one column a target."
        )
    scores = [None if s is None or s != s else s for s in rows.get("nodes_scores", [None] * len(sources))]
    nodes = zip(sources, rows["nodes_in_graph"], scores, strict=True)
    record = {"cfg": plain.get("cfg"), "nodes": {n: {"in_graph": inside, "score": s} for n, inside, s in nodes}}
    record["edges"] = {
        f"{source}->{target}": {"score": score, "in_graph": inside}
        for source, row, flags in zip(sources, tables["edges_scores"], tables["edges_in_graph"], strict=True)
        for target, score, inside in zip(targets, row, flags, strict=True)
        if score or inside
    }
    return _circuit(record, "this is not the state of an EAP-IG graph:")


def _is_list(value: Any, length: int | None = None) -> bool:
    return isinstance(value, list) and (length is None or len(value) == length)


def _circuit(record: Mapping[str, Any], headline: str) -> Circuit:
    file = checked(_MibFile, record, headline)
    reader = _RowReader(file.cfg)
    nodes = {name: reader.node(name, row) for name, row in file.nodes.items()}
    edges = {name: reader.edge(name, row) for name, row in file.edges.items()}
    ends = {end for name in edges for end in re.split("->|<", name)[:2]} - {"input", "logits"}
    reader.problems += [f"edges name {end[:40]!r}, which nodes has not" for end in sorted(ends - set(nodes))]
    if reader.problems:
        raise FormatError(all_problems(headline, reader.problems))
    scored = {name: row.score for name, row in nodes.items() if row.score is not None and name != "input"}
    source = "nodes" if scored else "edges"
    scored = scored or _outgoing(edges, nodes)
    names = sorted(Component.parse(name) for name in scored or nodes if name not in ("input", "logits"))
    evidence = {
        "format": "EAP-IG/MIB",
        "cfg": {key: value for key, value in asdict(file.cfg).items() if value is not None},
        "scores": {c.name: scored[c.name] for c in names} if scored else {},
        "scores_from": source if scored else "none",
        "edges_in_graph": sum(row.in_graph for row in edges.values()),
    }
    kept = tuple(Node(c) for c in names if nodes[c.name].in_graph)
    try:
        return Circuit(ComponentSet(tuple(names)), kept, (), "attribution score", evidence=evidence)
    except SpexMechError as error:
        raise FormatError(f"{headline} {error}") from error


class _RowReader(Reading):
    """Nodes and edges of a model of given sizes; fields of other versions of these files are passed over."""

    def __init__(self, cfg: _Config) -> None:
        super().__init__()
        self._sizes = (cfg.n_layers, cfg.n_heads)
        self._right = set[str]()  # names that are nodes of the model

    def node(self, name: str, row: Any) -> _NodeRow:
        where = f"nodes[{name[:40]!r}]"
        self.place(name, where)
        row = {"in_graph": row} if isinstance(row, bool) else row  # as older versions write them
        found = self.value(_NodeRow, row, where) or _NodeRow(False)
        if found.in_graph and not all(found.neurons):
            self.problems.append(f"{where} is in the graph with some of its coordinates only; here nodes are whole")
        return found

    def edge(self, name: str, row: Any) -> _EdgeRow:
        where = f"edges[{name[:40]!r}]"
        match = _EDGE_NAME.fullmatch(name)
        if match is None or ("." in match[2]) != (match[3] is not None):
            self.problems.append(f"{where} is no edge such as a0.h0->m0 or m0->a1.h3<q>")
            return _EdgeRow(None)
        for end in match.group(1, 2):
            self.place(end, where)
        return self.value(_EdgeRow, row, where) or _EdgeRow(None)

    def place(self, name: str, where: str) -> None:
        """Note a name that is no node of a model of these sizes, as this format writes it."""
        if name not in self._right:
            digits, sizes = re.findall(r"\d+", name), self._sizes
            plain = all(str(int(text)) == text for text in digits) if _NAME.fullmatch(name) else False
            if not plain or any(int(text) >= size for text, size in zip(digits, sizes, strict=False)):
                self.problems.append(f"{where}: {name[:40]!r} is no node of {sizes[0]} layers of {sizes[1]} heads")
                return
            self._right.add(name)


def _outgoing(edges: Mapping[str, _EdgeRow], nodes: Mapping[str, Any]) -> dict[str, float]:
    """For every node but the input, the sum of the scores of its outgoing edges; nothing where no edge has one."""
    found = {name: 0.0 for name in nodes if name not in ("input", "logits")}
    scored = [(name.partition("->")[0], row.score) for name, row in edges.items() if row.score is not None]
    for source, score in scored:
        if source in found:
            found[source] += score
    return found if any(score for _, score in scored) else {}


def _check_config(config: Any) -> dict[str, Any]:
    if config is None:
        raise FormatError(
            "EAP-IG's files name the sizes of the whole model, which a circuit does not know. Give "
            "config=mib_config(subject), or n_layers, n_heads, d_model and parallel_attn_mlp."
        )
    known = config if isinstance(config, Mapping) else {}
    there = {f.name: known[f.name] for f in fields(_Config) if f.name in known}
    reading = Reading(complete=True)
    cfg = reading.value(_Config, there, "config")
    if cfg is None or None in asdict(cfg).values():
        raise FormatError(all_problems("this config is not one of EAP-IG's:", reading.problems or ["a size is null"]))
    return asdict(cfg)


def _all_nodes(cfg: Mapping[str, Any]) -> Iterator[str]:
    yield "input"
    for layer in range(cfg["n_layers"]):
        yield from (f"a{layer}.h{head}" for head in range(cfg["n_heads"]))
        yield f"m{layer}"
    yield "logits"


def _all_edges(cfg: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """(name, from, to), in the order of the network: every node writes to all that come after it."""
    before = ["input"]
    for layer in range(cfg["n_layers"]):
        heads, mlp = [f"a{layer}.h{head}" for head in range(cfg["n_heads"])], f"m{layer}"
        yield from ((f"{one}->{head}<{part}>", one, head) for one in before for head in heads for part in "qkv")
        if not cfg["parallel_attn_mlp"]:
            before += heads
        yield from ((f"{one}->{mlp}", one, mlp) for one in before)
        before += [*heads, mlp] if cfg["parallel_attn_mlp"] else [mlp]
    yield from ((f"{one}->logits", one, "logits") for one in before)


def _count_edges(cfg: Mapping[str, Any]) -> int:
    """How many edges `_all_edges` has.

    >>> cfg = {"n_layers": 12, "n_heads": 12, "parallel_attn_mlp": False}
    >>> _count_edges(cfg) == len(list(_all_edges(cfg))) == 32491
    True
    """
    layers, heads = cfg["n_layers"], cfg["n_heads"]
    earlier = sum(1 + layer * (heads + 1) for layer in range(layers))
    same = 0 if cfg["parallel_attn_mlp"] else layers * heads
    return earlier * (3 * heads + 1) + same + 1 + layers * (heads + 1)
