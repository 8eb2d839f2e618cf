"""The options that commands share, what a shell completes them with, and examples for ``--help``."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from spex_mech.names import (
    BENCH_NAMES,
    DECODER_CHOICES,
    FORMAT_NAMES,
    LINK_CHOICES,
    MEAN_KINDS,
    METRIC_NAMES,
    REPLACEMENT_KINDS,
)

KEEPS = ("0.5", "0.8", "0.9", "auto", "coded")
HERE = "local"  # what --ray means without an address: a Ray of our own on this machine
STOPPED = 130  # the exit code after Ctrl-C


def fill_in(args: Sequence[str]) -> list[str]:
    """Arguments with what may be left out: the address of ``--ray``.

    >>> fill_in(["discover", "--ray", "--workers", "4"])
    ['discover', '--ray', 'local', '--workers', '4']
    """
    found = list[str]()
    for place, word in enumerate(args):
        found.append(word)
        if word == "--ray" and (place + 1 == len(args) or args[place + 1].startswith("-")):
            found.append(HERE)
    return found


def some_or_all(text: str) -> int | str:
    """A number of prompts, or the word that was given.

    >>> some_or_all("4"), some_or_all("all")
    (4, 'all')
    """
    return int(text) if text.isdecimal() and text.isascii() else text


def _among(*choices: str) -> Any:
    def complete(incomplete: str) -> list[str]:
        return [choice for choice in choices if choice.startswith(incomplete)]

    return complete


def _hush(asked: bool) -> bool:
    """Keep the bars of the libraries that load models off the terminal too; they look before they are imported."""
    if asked:
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    return asked


def complete_card(incomplete: str) -> list[str]:
    """The cards of the gallery that begin so; a shell asks for them."""
    from spex_mech.gallery import cards

    return [name for name in cards() if name.startswith(incomplete)]


_ASK, _MASKS, _SURE, _WHERE = "What is asked", "What is spent", "How it is decoded", "Who measures"

What = Annotated[
    str,
    typer.Argument(
        metavar="CARD|MODEL", help="A card (name or folder), a model folder or hub id.", autocompletion=complete_card
    ),
]
Out = Annotated[Path, typer.Option("--out", help="Run folder; the same call on the same folder resumes.")]
PromptsOption = Annotated[
    Path | None, typer.Option(help="Prompts (jsonl); a card brings its own.", rich_help_panel=_ASK)
]
Model = Annotated[
    str | None, typer.Option(help="Folder or hub id in the place of a card's model.", rich_help_panel=_ASK)
]
Components = Annotated[
    str | None,
    typer.Option(help='Such as "a*.h*, m3.n*"; default: the card\'s, or heads and MLPs.', rich_help_panel=_ASK),
]
ReplacementOption = Annotated[
    str | None,
    typer.Option(
        "--replacement",
        help="What an ablated component gives: mean, zero or resample; default: the card's.",
        autocompletion=_among(*REPLACEMENT_KINDS),
        rich_help_panel=_ASK,
    ),
]
MetricOption = Annotated[
    str | None,
    typer.Option(
        "--metric",
        help=f"{', '.join(METRIC_NAMES)}; default: the card's, or the prompts'.",
        autocompletion=_among(*METRIC_NAMES),
        rich_help_panel=_ASK,
    ),
]
ReferenceOption = Annotated[
    Path | None,
    typer.Option(
        "--reference", help="Prompts (jsonl) over which means are taken; default: those named there.",
        rich_help_panel=_ASK,
    ),
]  # fmt: skip
PerOption = Annotated[
    str | None,
    typer.Option(
        "--per",
        help="Means per position, or pooled over all tokens; default: the card's, or per position where it can be.",
        autocompletion=_among(*MEAN_KINDS),
        rich_help_panel=_ASK,
    ),
]
Budget = Annotated[int, typer.Option(help="Number of masks; rows = masks × prompts.", rich_help_panel=_MASKS)]
BudgetOrRows = Annotated[
    int | None,
    typer.Option(
        "--budget", help="Number of masks; the rows are masks × prompts a mask. Default: 1024.", rich_help_panel=_MASKS
    ),
]
RowsOption = Annotated[
    int | None,
    typer.Option("--rows", help="Forward rows, in the place of --budget: what is paid for.", rich_help_panel=_MASKS),
]
PromptsPerMask = Annotated[
    str,
    typer.Option(
        "--prompts-per-mask",
        help="How many of the prompts a mask meets: auto, all, or a number.",
        autocompletion=_among("auto", "all", "1", "2", "4"),
        rich_help_panel=_MASKS,
    ),
]
KeepText = Annotated[
    str,
    typer.Option(
        "--keep",
        help="Keep-probability of a mask, several (0.5,0.9), auto (a pilot) or coded.",
        autocompletion=_among(*KEEPS),
        rich_help_panel=_MASKS,
    ),
]
Share = Annotated[
    int,
    typer.Option(
        help="Masks in a row that agree on the earlier layers, which are passed once.", rich_help_panel=_MASKS
    ),
]
Refine = Annotated[
    bool,
    typer.Option(
        "--refine", help="Ablate blocks first and split those that carry weight; for thousands.", rich_help_panel=_MASKS
    ),
]
Device = Annotated[
    str | None,
    typer.Option("--device", help="Where the model lives: cpu, cuda, cuda:1 …", rich_help_panel=_WHERE),
]
Seed = Annotated[int, typer.Option("--seed", help="Seed of the masks, the held-out split and resampling.")]
DecoderOption = Annotated[
    str,
    typer.Option(
        "--decoder",
        help="auto, joint, proxyspex, spex, linear or exact.",
        autocompletion=_among(*DECODER_CHOICES),
        rich_help_panel=_SURE,
    ),
]
LinkOption = Annotated[
    str,
    typer.Option(
        "--link",
        help="auto, identity, or how the metric saturates: logistic, softplus, spline.",
        autocompletion=_among(*LINK_CHOICES),
        rich_help_panel=_SURE,
    ),
]
Folds = Annotated[
    int,
    typer.Option("--folds", help="Cross-fit errors and q over so many folds; 0: at no cost.", rich_help_panel=_SURE),
]
Resamples = Annotated[
    int,
    typer.Option(
        "--resamples", help="Decode so many halves of the masks for stability; 0: refit them.", rich_help_panel=_SURE
    ),
]
WorkerCount = Annotated[
    int | None,
    typer.Option("--workers", help="Spread the masks over so many Ray workers.", rich_help_panel=_WHERE),
]
RayAddress = Annotated[
    str | None,
    typer.Option(
        "--ray", help='Ray cluster: "auto" or host:port; without either, one on this machine.', rich_help_panel=_WHERE
    ),
]
GpusEach = Annotated[
    float,
    typer.Option("--gpus-per-worker", help="GPUs of each worker; may be a share.", rich_help_panel=_WHERE),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no tables; only errors.", callback=_hush)]
Json = Annotated[
    bool,
    typer.Option("--json", help="One JSON object on standard output, for machines; no tables.", callback=_hush),
]
FormatOption = Annotated[
    str,
    typer.Option(
        "--to", help=f"{', '.join(FORMAT_NAMES[:-1])} or {FORMAT_NAMES[-1]}.", autocompletion=_among(*FORMAT_NAMES)
    ),
]
CircuitFile = Annotated[
    Path, typer.Argument(metavar="CIRCUIT", help="circuit.json of a run; or a circuit in HIF, of EAP-IG or MIB.")
]
File = Annotated[Path, typer.Option("--out", help="File to write.")]
SizesFrom = Annotated[str | None, typer.Option("--model", help="mib: card or model, where neither file nor run says.")]
Bench = Annotated[
    str, typer.Argument(metavar="|".join(BENCH_NAMES), help="What to measure.", autocompletion=_among(*BENCH_NAMES))
]

BenchDevice = Annotated[str | None, typer.Option("--device", help="ablation, decode: cpu (default) or cuda.")]
BenchJson = Annotated[Path | None, typer.Option("--json", help="Write every cell measured to this file.")]
Quick = Annotated[bool, typer.Option(help="Small sizes only: does it run, not how fast.")]
PeerPython = Annotated[
    Path | None, typer.Option(help="decode, accuracy: an interpreter that has shapiq to run beside.")
]
BenchCards = Annotated[
    Path | None, typer.Option("--cards", help="accuracy, players, keep, rows: a folder of cards to measure on.")
]
SearchOption = Annotated[bool, typer.Option(help="accuracy: shapiq's ProxySPEX with its slow default search too.")]
Budgets = Annotated[
    str | None, typer.Option(help="accuracy, players, keep: numbers of masks; rows: of rows, such as 1024,4096.")
]
BenchOut = Annotated[
    Path | None, typer.Option("--out", help="accuracy, rows: a folder of responses and finished cells, to go on from.")
]

RunOrCircuit = Annotated[
    Path, typer.Argument(metavar="RUN|CIRCUIT", help="Run folder, or a file: a circuit of ours, HIF, EAP-IG or MIB.")
]
AuditBudget = Annotated[int, typer.Option("--budget", help="Number of masks; rows = masks × prompts.")]
AuditSeed = Annotated[int, typer.Option("--seed", help="Seed of everything drawn here.")]
AuditSize = Annotated[
    int | None, typer.Option("--size", help="Components of the audited circuit; default: as few as do.")
]
KnownOption = Annotated[str | None, typer.Option(help="A known circuit, names with commas; default: the card's.")]
OtherModel = Annotated[str | None, typer.Option("--model", help="Card or model, where the run does not say.")]
ShownPrompts = Annotated[Path | None, typer.Option("--prompts", help="Prompts (jsonl) to show the first of.")]
OtherPromptsOption = Annotated[Path | None, typer.Option("--prompts", help="Prompts (jsonl), with --model.")]

TEACH_APP = "Begin with [bold]spex-mech demo[/], then [bold]spex-mech discover --help[/]."
TEACH_DISCOVER = """[bold]Examples[/]

spex-mech discover induction-2l --out runs/induction

spex-mech discover ioi-gpt2-small --budget 4096 --keep auto --out runs/ioi

spex-mech discover ./my-model --prompts mine.jsonl --components "a*.h*, m3.n*" --keep 0.9 --out runs/mine

A row of prompts: {"text": "…", "answer": " Mary", "distractors": [" John"]}.

What is measured is saved as it comes: stop at any time, and the same command goes on.

Names: a9.h6 a head, m3 an MLP layer, m3.n417 a neuron, !a0.h3 all but this one.
"""
Gpu = Annotated[str | None, typer.Option("--gpu", help="Tell the floor on this GPU too, such as h100 or l4.")]
Price = Annotated[float | None, typer.Option("--price", help="Of the machine, an hour; the passes are priced with it.")]

TEACH_PLAN = """[bold]Examples[/]

spex-mech plan ioi-gpt2-small --budget 4096 --keep 0.9

spex-mech plan ioi-gpt2-small --components "a*.h*, m*" --budget 4096 --gpu h100 --price 2.5
"""
TEACH_RESPOND = """[bold]Example[/], on eight machines, then on one

spex-mech respond ioi-gpt2-small --budget 4096 --keep 0.9 --shard 3/8 --out shards/3

spex-mech merge shards --out runs/ioi

spex-mech discover ioi-gpt2-small --budget 4096 --keep 0.9 --out runs/ioi
"""
TEACH_AUDIT = """[bold]Examples[/]

spex-mech audit runs/ioi --budget 2048

spex-mech audit eap_ig.json --model ioi-gpt2-small

Does the polynomial predict fresh masks? Does the circuit alone do the job?

Does each interaction survive an experiment of its own? Do simpler methods do as well?
"""
TEACH_DECODE = """[bold]Example[/]

spex-mech decode runs/ioi/responses.safetensors --decoder linear --out runs/line
"""
TEACH_EXPORT = """[bold]Example[/]

spex-mech export runs/ioi/circuit.json --to graphml --out ioi.graphml
"""
TEACH_DOCTOR = """[bold]Examples[/]

spex-mech doctor

spex-mech doctor ioi-gpt2-small
"""
