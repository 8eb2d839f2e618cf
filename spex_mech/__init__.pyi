# What `import spex_mech as sm` offers, and where it lives. Read by type checkers, and by `__init__.py` at run time.
from spex_mech import components as components
from spex_mech import tasks as tasks
from spex_mech.ablation.backends.prompted import with_prompt as with_prompt
from spex_mech.ablation.binding import bind as bind
from spex_mech.ablation.load import load_model as load_model
from spex_mech.ablation.own_sites import latents as latents
from spex_mech.ablation.own_sites import site as site
from spex_mech.api import shards as shards
from spex_mech.api.ablated import ablated as ablated
from spex_mech.api.ablated import hooks as hooks
from spex_mech.api.audit import audit as audit
from spex_mech.api.audit_circuit import audit_circuit as audit_circuit
from spex_mech.api.data import discover_data as discover_data
from spex_mech.api.discover import discover as discover
from spex_mech.api.features import discover_features as discover_features
from spex_mech.api.plan import plan_run as plan_run
from spex_mech.api.report import report as report
from spex_mech.auditing.run_audit import Audit as Audit
from spex_mech.auditing.run_audit import load_audit as load_audit
from spex_mech.circuit.backups import find_backups as find_backups
from spex_mech.circuit.graph import Circuit as Circuit
from spex_mech.circuit.graph import load_circuit as load_circuit
from spex_mech.circuit.select import choose as choose
from spex_mech.circuit.select import choose_path as choose_path
from spex_mech.components import Component as Component
from spex_mech.components import ComponentSet as ComponentSet
from spex_mech.components import group as group
from spex_mech.components import heads as heads
from spex_mech.components import mlps as mlps
from spex_mech.components import neurons as neurons
from spex_mech.components import select as select
from spex_mech.errors import SpexMechError as SpexMechError
from spex_mech.formats import transformer_lens_hooks
from spex_mech.formats.interchange import export as export
from spex_mech.formats.interchange import read_circuit as read_circuit
from spex_mech.gallery import cards as cards
from spex_mech.gallery import open_card as open_card
from spex_mech.gallery.studies import open_study as open_study
from spex_mech.measuring.workers import Workers as Workers
from spex_mech.show import plot as plot
from spex_mech.store.discovery import Discovery as Discovery
from spex_mech.store.discovery import load_run as load_run
from spex_mech.store.responses import Responses as Responses
from spex_mech.tasks.task import Task as Task
from spex_mech.walsh.masks.design import MaskDesign as MaskDesign
from spex_mech.walsh.spectrum import Basis as Basis
from spex_mech.walsh.spectrum import Spectrum as Spectrum

__version__: str
tl = transformer_lens_hooks
