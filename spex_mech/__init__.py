"""Find which attention heads and MLP neurons of a transformer matter together.

Ablate sets of components by masks, recover a sparse polynomial of the keep bits from the responses (SPEX, ProxySPEX and
kin), read its interactions as a circuit. The spine is `discover`; the conventions stand in `spex_mech.walsh`.

Importing this package imports nothing else: every public name is fetched from its module on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "spex_mech.ablation.binding": ("bind",),
    "spex_mech.ablation.load": ("load_model",),
    "spex_mech.measuring.workers": ("Workers",),
    "spex_mech.api.audit": ("audit",),
    "spex_mech.auditing.run_audit": ("Audit", "load_audit"),
    "spex_mech.circuit.backups": ("Backup", "find_backups"),
    "spex_mech.circuit.codec": ("load_circuit",),
    "spex_mech.circuit.graph": ("Circuit", "Interaction", "Node"),
    "spex_mech.formats.hif": ("read_hif",),
    "spex_mech.formats.interchange": ("export", "read_circuit"),
    "spex_mech.formats.mib": ("mib_circuit", "read_mib"),
    "spex_mech.circuit.select": ("Selection", "choose", "choose_path"),
    "spex_mech.show.plot": ("plot_circuit", "plot_faithfulness", "plot_predictions", "plot_spectrum"),
    "spex_mech.components": ("Component", "ComponentSet", "group", "heads", "kv_groups", "mlps", "neurons", "select"),
    "spex_mech.api.discover": ("discover",),
    "spex_mech.errors": ("SpexMechError",),
    "spex_mech.api.features": ("discover_features",),
    "spex_mech.gallery": ("cards", "open_card"),
    "spex_mech.formats.transformer_lens_hooks": ("hook_frame", "hook_interactions", "mib_config"),
    "spex_mech.ablation.backends.prompted": ("with_prompt",),
    "spex_mech.api.plan": ("Plan", "plan_run"),
    "spex_mech.api.report": ("report",),
    "spex_mech.store.responses": ("Responses",),
    "spex_mech.store.discovery": ("Discovery", "load_run"),
    "spex_mech.auditing.circuit_audit": ("CircuitAudit",),
    "spex_mech.circuit.node_scores": ("node_scores",),
    "spex_mech.api.audit_circuit": ("audit_circuit",),
    "spex_mech.api.shards": ("Shard", "merge_shards", "respond_shard"),
    "spex_mech.gallery.studies": ("Study", "open_study", "true_spectrum"),
    "spex_mech.tasks.task": ("Task",),
    "spex_mech.api.data": ("discover_data",),
    "spex_mech.walsh.masks.design": ("MaskDesign",),
    "spex_mech.walsh.spectrum": ("Basis", "Spectrum"),
    "spex_mech.api.ablated": ("ablated", "hooks"),
}
_MODULES = ("tasks",)  # public names that are modules: sm.tasks.ioi(…)
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = ["__version__", *sorted(_HOME_OF)]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"spex_mech.{name}")
    if name not in _HOME_OF:
        raise AttributeError(
            f"module {__name__!r} has no attribute {name!r}; its public names are {', '.join(__all__)}."
        )
    value = getattr(import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__


if TYPE_CHECKING:
    from spex_mech import tasks as tasks
    from spex_mech.ablation.backends.prompted import with_prompt as with_prompt
    from spex_mech.ablation.binding import bind as bind
    from spex_mech.ablation.load import load_model as load_model
    from spex_mech.api.ablated import ablated as ablated
    from spex_mech.api.ablated import hooks as hooks
    from spex_mech.api.audit import audit as audit
    from spex_mech.api.audit_circuit import audit_circuit as audit_circuit
    from spex_mech.api.data import discover_data as discover_data
    from spex_mech.api.discover import discover as discover
    from spex_mech.api.features import discover_features as discover_features
    from spex_mech.api.plan import Plan as Plan
    from spex_mech.api.plan import plan_run as plan_run
    from spex_mech.api.report import report as report
    from spex_mech.api.shards import Shard as Shard
    from spex_mech.api.shards import merge_shards as merge_shards
    from spex_mech.api.shards import respond_shard as respond_shard
    from spex_mech.auditing.circuit_audit import CircuitAudit as CircuitAudit
    from spex_mech.auditing.run_audit import Audit as Audit
    from spex_mech.auditing.run_audit import load_audit as load_audit
    from spex_mech.circuit.backups import Backup as Backup
    from spex_mech.circuit.backups import find_backups as find_backups
    from spex_mech.circuit.codec import load_circuit as load_circuit
    from spex_mech.circuit.graph import Circuit as Circuit
    from spex_mech.circuit.graph import Interaction as Interaction
    from spex_mech.circuit.graph import Node as Node
    from spex_mech.circuit.node_scores import node_scores as node_scores
    from spex_mech.circuit.select import Selection as Selection
    from spex_mech.circuit.select import choose as choose
    from spex_mech.circuit.select import choose_path as choose_path
    from spex_mech.components import Component as Component
    from spex_mech.components import ComponentSet as ComponentSet
    from spex_mech.components import group as group
    from spex_mech.components import heads as heads
    from spex_mech.components import kv_groups as kv_groups
    from spex_mech.components import mlps as mlps
    from spex_mech.components import neurons as neurons
    from spex_mech.components import select as select
    from spex_mech.errors import SpexMechError as SpexMechError
    from spex_mech.formats.hif import read_hif as read_hif
    from spex_mech.formats.interchange import export as export
    from spex_mech.formats.interchange import read_circuit as read_circuit
    from spex_mech.formats.mib import mib_circuit as mib_circuit
    from spex_mech.formats.mib import read_mib as read_mib
    from spex_mech.formats.transformer_lens_hooks import hook_frame as hook_frame
    from spex_mech.formats.transformer_lens_hooks import hook_interactions as hook_interactions
    from spex_mech.formats.transformer_lens_hooks import mib_config as mib_config
    from spex_mech.gallery import cards as cards
    from spex_mech.gallery import open_card as open_card
    from spex_mech.gallery.studies import Study as Study
    from spex_mech.gallery.studies import open_study as open_study
    from spex_mech.gallery.studies import true_spectrum as true_spectrum
    from spex_mech.measuring.workers import Workers as Workers
    from spex_mech.show.plot import plot_circuit as plot_circuit
    from spex_mech.show.plot import plot_faithfulness as plot_faithfulness
    from spex_mech.show.plot import plot_predictions as plot_predictions
    from spex_mech.show.plot import plot_spectrum as plot_spectrum
    from spex_mech.store.discovery import Discovery as Discovery
    from spex_mech.store.discovery import load_run as load_run
    from spex_mech.store.responses import Responses as Responses
    from spex_mech.tasks.task import Task as Task
    from spex_mech.walsh.masks.design import MaskDesign as MaskDesign
    from spex_mech.walsh.spectrum import Basis as Basis
    from spex_mech.walsh.spectrum import Spectrum as Spectrum
