"""The spine: a lens → masks → responses → polynomial → circuit. Each line calls one pass; every kind of run is this."""

import time
from collections.abc import Callable
from functools import partial

from spex_mech.components import ComponentSet
from spex_mech.errors import warn_user
from spex_mech.files.locks import hold
from spex_mech.files.plain_files import refuse_links
from spex_mech.measuring.ask import Ask
from spex_mech.measuring.crossing import in_masks, settle_rows
from spex_mech.measuring.decode import decode_held, metric_of, refuse_undecodable
from spex_mech.measuring.lens import Lens
from spex_mech.measuring.masks import choose_design
from spex_mech.measuring.measure import describe_experiment, measure_in
from spex_mech.measuring.narrowing import narrow
from spex_mech.measuring.pilot import Settled, settle_keep
from spex_mech.measuring.ray_pool import choose_run
from spex_mech.progress import mask_progress, said
from spex_mech.store.discovery import Discovery, recall_responses
from spex_mech.store.responses import Responses

Focus = Callable[[ComponentSet], Lens]
"""Makes the lens on some components, which may take forward passes of its own."""


def run(focus: Focus, components: ComponentSet, ask: Ask, prompts: int | None = None) -> Discovery:
    """Answer a question about `components`; in rounds, where it asks for refinement.

    `prompts`: how many there are to choose from for each mask; None: the lens gives all values of a mask at once.
    """
    if ask.folder is not None:
        refuse_links(ask.folder)  # the folders of rounds are below it
    crossing = settle_rows(len(components), prompts, ask)
    if ask.refine:
        return narrow(components, in_masks(ask, crossing), partial(run, focus, prompts=prompts))
    design = choose_design(components, ask, crossing)
    refuse_undecodable(ask, design)
    with hold(ask.folder):
        lens = focus(components)
        started = time.perf_counter()
        settled = settle_keep(lens, design, ask, crossing)
        responses, resumed = respond_to(lens, settled, ask)
        seconds = {"respond": time.perf_counter() - started}
        told = {} if prompts is None else {"crossing": crossing.describe()}
        spent = {"asked": ask.to_dict(), "seconds": seconds, **told, **lens.notes, **resumed, **settled.record}
        with said("decoding", shown=ask.progress):
            return decode_held(responses, ask, spent, lens.roles)


def respond_to(lens: Lens, settled: Settled, ask: Ask) -> tuple[Responses, dict[str, int]]:
    """The responses, from the run folder where they are there; and how much a run before this one had measured."""
    design, record = settled.design, describe_experiment(lens, settled.design, settled.prompts)
    caution(record)
    known = recall_responses(ask.folder, record, lens.components)
    if known is not None:
        return known, {"resumed_masks": design.n_masks}
    with mask_progress(design.n_masks, lens.verb, shown=ask.progress) as tick:
        tick(settled.begin)
        return measure_in(
            ask.folder, lens, record, design.keep(), cut=partial(design.chunks, start=settled.begin), tick=tick,
            known=settled.known, run=choose_run(ask.workers, lens.device), meets=settled.prompts,
        )  # fmt: skip


def caution(record: dict[str, object]) -> None:
    """Say what a reader of the result should know of the metric."""
    metric = metric_of(record)
    if metric is not None and metric.warning is not None:
        warn_user(f"metric {metric.name!r}: {metric.warning}.")
