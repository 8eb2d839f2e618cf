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

from spex_mech.ablation.model_parts import ModelParts
from spex_mech.ablation.wrappers import single_precision
from spex_mech.components import ComponentSet
from spex_mech.errors import DesignError, FormatError, ResponseError, SpexMechError, all_problems
from spex_mech.files.locks import hold
from spex_mech.files.plain_files import is_plain, refuse_links
from spex_mech.files.records import differences
from spex_mech.measuring.ask import AUTO, Ask, KeepProb
from spex_mech.measuring.crossing import settle_rows
from spex_mech.measuring.journal import JOURNAL, Journal, open_journal, reopen_journal
from spex_mech.measuring.lens import Lens, chunk_of
from spex_mech.measuring.masks import choose_design
from spex_mech.measuring.measure import PROMPT_DESIGN, describe_experiment, measure_share, recollect, settle_lens
from spex_mech.measuring.ray_pool import choose_run
from spex_mech.measuring.spine import caution
from spex_mech.measuring.workers import Workers
from spex_mech.progress import mask_progress
from spex_mech.store.discovery import store, whole_key
from spex_mech.store.responses import MOST_PROMPTS, Responses, pack_bits
from spex_mech.tasks.task import Task
from spex_mech.walsh.masks.design import MaskDesign
from spex_mech.walsh.masks.prompt_design import PromptDesign

_SPARSE = 10_000  # chunks that may be missing for every one that is there
_MOST_PROMPTS = 1 << 24
_CHUNK, _MOST_TOGETHER = 256, 1 << 20  # masks in a chunk, of journals that do not say; what one may say


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

    def masks(self, total: int, chunk: int = _CHUNK) -> int:
        """How many of so many masks are in it, where so many are measured together."""
        return sum(min(chunk, total - first) for first in range((self.part - 1) * chunk, total, self.parts * chunk))


@single_precision()
def respond_shard(
    subject: Any,
    task: Task,
    components: ComponentSet | str | None = None,
    *,
    out: str | Path,
    budget: int | None = None,
    rows: int | None = None,
    prompts_per_mask: int | str = "auto",
    keep_prob: KeepProb = 0.5,
    replacement: str = "mean",
    decoder: str = "auto",
    seed: int = 0,
    per: str | None = None,
    shared_layers: int = 1,
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
    ask = Ask(
        budget=budget, rows=rows, prompts_per_mask=prompts_per_mask, keep_prob=keep_prob, replacement=replacement,
        decoder=decoder, seed=seed, per=per, shared_layers=shared_layers, workers=workers, out=out, progress=progress,
    )  # fmt: skip
    parts = ModelParts.of(subject, task, components)
    crossing = settle_rows(len(parts.components), len(parts.task), ask)
    design = choose_design(parts.components, ask, crossing)
    if ask.keep_prob == AUTO and design.kind == "stratified":
        raise DesignError(
            "keep_prob='auto' lets a pilot decide, and shares cannot. Run the pilot once, then give its keep_prob."
        )
    with hold(out):
        lens = parts.engine(ask.replacement, per=ask.per, seed=ask.seed)
        return _measure_shard(lens, design, crossing.deal(design), ask, shard)


def _measure_shard(
    lens: Lens, design: MaskDesign, prompts: PromptDesign | None, ask: Ask, shard: Shard
) -> dict[str, int]:
    """One share of a lens's masks, into a run folder that this process holds."""
    record, run = describe_experiment(lens, design, prompts), choose_run(ask.workers, lens.device)
    caution(record)
    with open_journal(Path(ask.out or ""), whole_key(record, lens.components)) as journal:
        lens = settle_lens(lens, journal)
        _refuse_other_shard(journal, shard)
        chunk = chunk_of(lens, prompts)
        total = shard.masks(design.n_masks, chunk)
        with mask_progress(total, lens.verb, shown=ask.progress) as tick:
            share = (shard.part, shard.parts)
            measure_share(lens, design.chunks(chunk), journal, share, tick=tick, run=run, meets=prompts)
        return {"masks": total, "resumed_masks": journal.resumed}


def _refuse_other_shard(journal: Journal, shard: Shard) -> None:
    there = journal.settle("shard", lambda: str(shard))
    if there != str(shard):
        raise ResponseError(f"{journal.path} has shard {there}, not {shard}. Choose a folder for each shard.")


@single_precision()
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
    for path in sources:
        refuse_links(path)
    empty = [str(path) for path in sources if not is_plain(path / JOURNAL)]
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
    """The folders that hold a journal: those given, or what lies in one that holds none itself.

    Raises `FormatError` for what lies in one and is a link: it may lead anywhere.
    """
    for folder in folders:
        inside = [] if (folder / JOURNAL).exists() else sorted(path.parent for path in folder.glob(f"*/{JOURNAL}"))
        links = [path.name for path in inside if path.is_symlink()]
        if links:
            raise FormatError(f"{folder} holds links ({', '.join(links[:8])}); name the folders they lead to instead.")
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
    design, components, prompts, dealt = _asked(key, target.path)
    settled = _chunk([*journals, target])
    chunk = settled if dealt is None else settled * dealt.prompts // dealt.per_mask
    _refuse_endless(-(-design.n_masks // chunk), [*journals, target])
    for name in ("batch_rows", "threads", "unit"):
        target.settle(name, lambda name=name: _settled(journals, name))
    if settled != _CHUNK:
        target.settle("chunk", lambda: settled)
    for first, keep in design.chunks(chunk):
        packed = pack_bits(keep)
        if target.read(first, packed) is None:
            found = (values for journal in journals if (values := journal.read(first, packed)) is not None)
            for values in islice(found, 1):
                target.write(first, packed, values)
    values, missing = recollect(target, design.chunks(chunk), components, prompts, dealt)
    if missing:
        shards = {text for journal in (*journals, target) if (text := journal.settled("shard")) is not None}
        ends = {first // chunk: f"{first:,} to {min(first + chunk, design.n_masks) - 1:,}" for first in missing}
        total = -(-design.n_masks // chunk)
        raise ResponseError(
            all_problems(
                f"{len(missing):,} of {total:,} chunks are missing; the others are in {out}. Measure these shares and "
                "merge again, or let discover measure the rest there:",
                _missing(ends, shards),
            )
        )
    provenance = {name: value for name, value in key.items() if name != "components"}
    unit = str(target.settle("unit", lambda: ""))
    met = None if dealt is None else dealt.met()
    responses = Responses(components, design.keep(), values, unit, provenance, met, prompts)
    store(responses, out)
    return responses


def _asked(key: Mapping[str, Any], path: Path) -> tuple[MaskDesign, ComponentSet, int, PromptDesign | None]:
    """What a journal's record says was asked; it may come from a stranger."""
    try:
        design, components = MaskDesign.from_dict(key["design"]), ComponentSet.of(key["components"])
        prompts, told = int(key["task"]["prompts"]), key.get(PROMPT_DESIGN)
        dealt = None if told is None else PromptDesign.from_dict(told)
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        problem = str(error) if isinstance(error, SpexMechError) else repr(error)
        raise FormatError(f"{path} does not say which masks of what were measured: {problem}") from error
    fits = dealt is None or (dealt.prompts, dealt.n_masks, dealt.again) == (prompts, design.n_masks, design.again)
    if design.n != len(components) or not 0 < prompts < MOST_PROMPTS or not fits:
        raise FormatError(
            f"{path} is of masks over {design.n:,} components, names {len(components):,} and has {prompts:,} prompts"
            f"{'' if fits else ', dealt out to other masks'}; that is no run of respond."
        )
    return design, components, prompts, dealt


def _chunk(journals: Sequence[Journal]) -> int:
    """How many masks the shares measured together."""
    found = [chunk for journal in journals if (chunk := journal.settled("chunk")) is not None]
    if not all(type(chunk) is int and 0 < chunk <= _MOST_TOGETHER for chunk in found) or len(set(found)) > 1:
        raise ResponseError(f"these shares are cut into chunks of {found[:9]} masks; measure them again, all alike.")
    return found[0] if found else _CHUNK


def _refuse_endless(total: int, journals: Sequence[Journal]) -> None:
    """A few digits would have us look for masks that nobody measured until the end of time."""
    there = sum(journal.count() for journal in journals)
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


def _missing(chunks: Mapping[int, str], shards: set[str]) -> list[str]:
    """Which chunks, by number and the masks they hold, and which of the shards that were given they belong to."""
    named, parts = [f"masks {masks}" for masks in chunks.values()], {Shard.parse(text).parts for text in shards}
    if len(parts) == 1:
        count = parts.pop()
        lacking = [f"{part}/{count}" for part in sorted({number % count + 1 for number in chunks})]
        states = (f"{name} ({'unfinished' if name in shards else 'not given'})" for name in lacking)
        named.insert(0, f"shards {', '.join(states)}")
    return named
