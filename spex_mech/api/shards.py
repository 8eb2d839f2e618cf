"""Shares of one run on machines that know nothing of each other: measure each where you like, then merge them.

A share is a plain journal of the whole run, with the chunks of the other shares missing. So a share that is killed goes
on, shares are merged in any order, and `discover` in a folder of merged shares measures what is still missing.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from spex_mech.ablation.binding import bind
from spex_mech.ablation.replacement import fit_replacement
from spex_mech.ablation.respond import Engine
from spex_mech.components import ComponentSet
from spex_mech.errors import DesignError, FormatError, ResponseError, SpexMechError, all_problems
from spex_mech.files.locks import hold
from spex_mech.files.records import differences
from spex_mech.measuring.experiment import choose_components, describe_experiment
from spex_mech.measuring.in_folder import MASK_CHUNK, settle_unit
from spex_mech.measuring.journal import JOURNAL, Journal, open_journal, reopen_journal
from spex_mech.measuring.masks import AUTO, KeepProb, choose_design, share_early
from spex_mech.measuring.measure import measure_share, recollect
from spex_mech.measuring.scaling import choose_run
from spex_mech.measuring.workers import Workers
from spex_mech.progress import mask_progress
from spex_mech.store.discovery import store, whole_key
from spex_mech.store.responses import Responses, pack_bits
from spex_mech.tasks.task import Task
from spex_mech.walsh.masks.design import MaskDesign

_SPARSE = 10_000  # chunks that may be missing for every one that is there
_MOST_PROMPTS = 1 << 24


@dataclass(frozen=True)
class Shard:
    """Number `part` of `parts` equal shares of a run, counted from 1."""

    part: int = 1
    parts: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.part <= self.parts:
            raise DesignError(f"shard {self} was asked for; shards are 1/N to N/N.")

    def __str__(self) -> str:
        return f"{self.part}/{self.parts}"

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """Read ``"2/8"``.

        >>> Shard.parse("2/8")
        Shard(part=2, parts=8)
        """
        part, slash, parts = text.partition("/")
        if not (slash and part.isdecimal() and parts.isdecimal() and len(text) < 20):
            raise DesignError(f"shard {text!r:.40} was asked for; write which of how many, such as 2/8.")
        return cls(int(part), int(parts))

    def masks(self, total: int) -> int:
        """How many of so many masks are in it."""
        return sum(
            min(MASK_CHUNK, total - first)
            for first in range((self.part - 1) * MASK_CHUNK, total, self.parts * MASK_CHUNK)
        )


def respond_shard(
    subject: Any,
    task: Task,
    components: ComponentSet | str | None = None,
    budget: int = 1024,
    keep_prob: KeepProb = 0.5,
    replacement: str = "mean",
    decoder: str = "auto",
    seed: int = 0,
    per: str | None = None,
    shared_layers: int = 1,
    *,
    out: str | Path,
    shard: Shard = Shard(),
    progress: bool = False,
    workers: Workers | None = None,
) -> dict[str, int]:
    """Measure one share of the masks that `discover` with the same arguments would measure, into a journal in `out`.

    What was measured before is not measured again. Returns ``{"masks": in the share, "resumed_masks": known before}``.

    Raises:
        DesignError: ``keep_prob="auto"``, which a pilot decides that shares would each have to run.
        ResponseError: `out` is in use, belongs to another experiment or to another shard, or cannot be written.
    """
    subject = bind(subject)
    chosen, task = choose_components(subject, components), task.check(subject.shape)
    design = share_early(choose_design(len(chosen), budget, keep_prob, decoder, seed), chosen, shared_layers)
    if keep_prob == AUTO and design.kind == "stratified":
        raise DesignError(
            "keep_prob='auto' lets a pilot decide, and shares cannot. Run the pilot once, then give its keep_prob."
        )
    run, total = choose_run(workers, subject), shard.masks(design.n_masks)
    with hold(out):
        reference = fit_replacement(subject, task, chosen, kind=replacement, per=per, seed=seed)
        engine = Engine(subject, task, chosen, reference)
        key = whole_key(describe_experiment(subject, task, reference, design), chosen)
        with open_journal(Path(out), key) as journal, mask_progress(total, "ablating", shown=progress) as tick:
            settle_unit(journal, task)
            _refuse_other_shard(journal, shard)
            measure_share(engine, design.chunks(MASK_CHUNK), journal, (shard.part, shard.parts), tick, run)
            return {"masks": total, "resumed_masks": journal.resumed}


def _refuse_other_shard(journal: Journal, shard: Shard) -> None:
    there = journal.settle("shard", lambda: str(shard))
    if there != str(shard):
        raise ResponseError(f"{journal.path} has shard {there}, not {shard}. Choose a folder for each shard.")


def merge_shards(folders: Sequence[str | Path], out: str | Path) -> Responses:
    """Put the journals of several folders together in `out`, and the responses beside them once all masks are there.

    No model is needed. Every chunk is checked against its checksum and its masks as it is copied. Where chunks are
    missing, those that are there are in `out` all the same: merge again later, or let `discover` measure the rest.

    Raises:
        FormatError: a folder holds no journal.
        ResponseError: the folders belong to different experiments (what differs is named), or chunks are missing (they
            are named).
    """
    target_folder = Path(out).resolve()
    sources = list(dict.fromkeys(path.resolve() for path in shard_folders(map(Path, folders))))
    empty = [str(path) for path in sources if not (path / JOURNAL).is_file()]
    if empty or not sources:
        raise FormatError(
            all_problems(f"there is no {JOURNAL} of a measured share in:", empty or ["(no folder given)"])
        )
    with hold(out), ExitStack() as stack:
        opened = [stack.enter_context(reopen_journal(path)) for path in sources if path != target_folder]
        key = opened[0][1] if opened else _key_of(target_folder)
        _refuse_strangers(opened, key)
        target = stack.enter_context(open_journal(target_folder, key))
        return _merge([journal for journal, _ in opened], target, key, target_folder)


def shard_folders(folders: Iterable[Path]) -> Iterator[Path]:
    """The folders that hold a journal: those given, or what lies in one that holds none itself."""
    for folder in folders:
        inside = [] if (folder / JOURNAL).exists() else sorted(path.parent for path in folder.glob(f"*/{JOURNAL}"))
        yield from inside or [folder]


def _key_of(folder: Path) -> dict[str, Any]:
    with reopen_journal(folder) as (_, key):
        return key


def _refuse_strangers(opened: Sequence[tuple[Journal, Mapping[str, Any]]], key: Mapping[str, Any]) -> None:
    """Whether all journals are of one experiment, every problem of every folder at once."""
    problems = []
    for journal, there in opened:
        found = differences(there, key, sides=("there", "in the first"))
        if found:
            problems.append(f"{journal.path.parent} differs in {'; '.join(found[:3])}")
    if problems:
        raise ResponseError(all_problems("these shares do not belong together:", problems))


def _merge(journals: Sequence[Journal], target: Journal, key: Mapping[str, Any], out: Path) -> Responses:
    design, components, prompts = _asked(key, target.path)
    _refuse_endless(design, [*journals, target])
    for name in ("batch_rows", "threads", "unit"):
        target.settle(name, lambda name=name: _settled(journals, name))
    for first, keep in design.chunks(MASK_CHUNK):
        packed = pack_bits(keep)
        if target.read(first, packed) is None:
            found = (values for journal in journals if (values := journal.read(first, packed)) is not None)
            for values in islice(found, 1):
                target.write(first, packed, values)
    values, missing = recollect(target, design.chunks(MASK_CHUNK), components, prompts)
    if missing:
        raise ResponseError(_describe_missing(missing, design.n_masks, [*journals, target], out))
    provenance = {name: value for name, value in key.items() if name != "components"}
    unit = str(target.settle("unit", lambda: ""))
    responses = Responses(components, design.keep(), values, unit, provenance)
    store(responses, out)
    return responses


def _asked(key: Mapping[str, Any], path: Path) -> tuple[MaskDesign, ComponentSet, int]:
    """What a journal's record says was asked; it may come from a stranger."""
    try:
        design, components = MaskDesign.from_dict(key["design"]), ComponentSet.of(key["components"])
        prompts = int(key["task"]["prompts"])
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        problem = str(error) if isinstance(error, SpexMechError) else repr(error)
        raise FormatError(f"{path} does not say which masks of what were measured: {problem}") from error
    if design.n != len(components) or not 0 < prompts < _MOST_PROMPTS:
        raise FormatError(
            f"{path} is of masks over {design.n:,} components, names {len(components):,} and has {prompts:,} prompts; "
            "that is no run of respond."
        )
    return design, components, prompts


def _refuse_endless(design: MaskDesign, journals: Sequence[Journal]) -> None:
    """A few digits would have us look for masks that nobody measured until the end of time."""
    total, there = -(-design.n_masks // MASK_CHUNK), sum(journal.count() for journal in journals)
    if total > _SPARSE * (there + 1):
        raise ResponseError(
            f"these shares hold {there:,} of {total:,} chunks, too few to be shares of one run. Merge more of them at "
            "a time."
        )


def _settled(journals: Sequence[Journal], name: str) -> Any:
    """What the shares decided; where they differ, as batch sizes on unlike machines do, the first that says it."""
    found = [journal.settled(name) for journal in journals]
    known = [value for value in found if value is not None]
    if not known:
        raise ResponseError(f"no share says its {name}; measure one of them again with this version.")
    return known[0]


def _describe_missing(missing: Sequence[int], n_masks: int, journals: Sequence[Journal], out: Path) -> str:
    shards = {text for journal in journals if (text := journal.settled("shard")) is not None}
    parts = {Shard.parse(text).parts for text in shards}
    named = [f"masks {first:,} to {min(first + MASK_CHUNK, n_masks) - 1:,}" for first in missing]
    if len(parts) == 1:
        count = parts.pop()
        lacking = sorted({first // MASK_CHUNK % count + 1 for first in missing})
        states = (
            f"{part}/{count} ({'unfinished' if f'{part}/{count}' in shards else 'not given'})" for part in lacking
        )
        named.insert(0, f"shards {', '.join(states)}")
    total = -(-n_masks // MASK_CHUNK)
    headline = (
        f"{len(missing):,} of {total:,} chunks are missing; the others are in {out}. Measure these shares and merge "
        "again, or let discover measure the rest there:"
    )
    return all_problems(headline, named)
