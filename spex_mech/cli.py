"""`spex-mech`: parses, calls the spine, prints. No logic of its own."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from spex_mech import __version__
from spex_mech.errors import SpexMechError

app = typer.Typer(
    name="spex-mech",
    help="Find which attention heads and MLP neurons of a transformer matter together.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
Out = Annotated[Path, typer.Option("--out", help="Run folder; the same call on the same folder resumes.")]
Seed = Annotated[int, typer.Option("--seed", help="Seed of the masks, the held-out split and resampling.")]
LinkName = Annotated[
    str, typer.Option("--link", help="auto, identity, or how the metric saturates: logistic, softplus, spline.")
]
DecoderName = Annotated[str, typer.Option("--decoder", help="auto, joint, proxyspex, spex, linear or exact.")]
Folds = Annotated[int, typer.Option("--folds", help="Cross-fit errors and q over so many folds; 0: held-out masks.")]
Resamples = Annotated[
    int, typer.Option("--resamples", help="Decode so many halves of the masks for stability; 0: refit them.")
]
Device = Annotated[str | None, typer.Option("--device", help="Where the model lives: cpu, cuda, cuda:1 …")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no tables; only errors.")]


def main() -> None:
    """Entry point: 0 on success, 2 for a user's mistake (one message, no traceback), 1 for ours."""
    try:
        app()
    except SpexMechError as error:
        Console(stderr=True).print(f"[bold red]error:[/] {_escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        Console(stderr=True).print("stopped; what was saved is in the run folder.")
        sys.exit(130)


@app.command()
def demo(out: Out = Path("runs/demo"), budget: int = 512, seed: Seed = 0, quiet: Quiet = False) -> None:
    """The main job on the model that ships with the project: which heads make induction happen together?"""
    found = _discover("induction-2l", out, quiet=quiet, budget=budget, seed=seed)
    if not quiet:
        from spex_mech.printing import print_truth

        print_truth(found, "induction-2l", _console())


@app.command()
def discover(
    what: Annotated[
        str, typer.Argument(metavar="CARD|MODEL", help="A card (name or folder), a model folder or hub id.")
    ],
    out: Out,
    prompts: Annotated[Path | None, typer.Option(help="Prompts (jsonl); a card brings its own.")] = None,
    model: Annotated[str | None, typer.Option(help="Folder or hub id in the place of a card's model.")] = None,
    components: Annotated[str | None, typer.Option(help='Such as "a*.h*, m3.n*"; default: the card\'s.')] = None,
    budget: Annotated[int, typer.Option(help="Number of masks; rows = masks × prompts.")] = 1024,
    keep: Annotated[str, typer.Option(help="Keep-probability, several (0.5,0.9), auto or coded.")] = "0.5",
    decoder: DecoderName = "auto",
    link: LinkName = "auto",
    replacement: Annotated[str | None, typer.Option(help="mean, zero or resample; default: the card's.")] = None,
    share: Annotated[int, typer.Option(help="Masks in a row that agree on the earlier layers, passed once.")] = 1,
    folds: Folds = 0,
    resamples: Resamples = 0,
    seed: Seed = 0,
    device: Device = None,
    quiet: Quiet = False,
) -> None:
    """Ablate sets of components, recover their interactions, write the circuit."""
    _discover(
        what, out, quiet=quiet, prompts=prompts, model=model, components=components, budget=budget, keep=keep,
        decoder=decoder, link=link, replacement=replacement, share=share, folds=folds, resamples=resamples, seed=seed,
        device=device,
    )  # fmt: skip


@app.command()
def decode(
    responses: Annotated[Path, typer.Argument(help="responses.safetensors of a run.")],
    out: Out,
    decoder: DecoderName = "auto",
    link: LinkName = "auto",
    folds: Folds = 0,
    resamples: Resamples = 0,
    seed: Seed = 0,
    quiet: Quiet = False,
) -> None:
    """Decode responses that were measured before; needs no model."""
    from spex_mech.discovery import decode as run
    from spex_mech.printing import print_discovery
    from spex_mech.reporting import write_report
    from spex_mech.responses import Responses

    found = run(Responses.load(responses), decoder, seed, out, folds, resamples, link)
    write_report(out)
    if not quiet:
        print_discovery(found, out, _console())


@app.command()
def audit(
    run: Annotated[Path, typer.Argument(help="Run folder of discover, or a circuit: ours, HIF, EAP-IG or MIB.")],
    budget: Annotated[int, typer.Option(help="Number of masks; rows = masks × prompts.")] = 2048,
    seed: Annotated[int, typer.Option("--seed", help="Seed of everything drawn here.")] = 1,
    size: Annotated[int | None, typer.Option(help="Components of the audited circuit; default: as few as do.")] = None,
    known: Annotated[str | None, typer.Option(help="A known circuit, names with commas; default: the card's.")] = None,
    model: Annotated[str | None, typer.Option(help="Card or model, where the run does not say.")] = None,
    prompts: Annotated[Path | None, typer.Option(help="Prompts (jsonl), with --model.")] = None,
    device: Device = None,
    quiet: Quiet = False,
) -> None:
    """Put a run to the test on fresh masks, within a budget; writes audit.json and the report beside it."""
    names = None if known is None else known.split(",")
    if run.is_file():
        from spex_mech.exchange import audit_file, print_circuit_audit

        told = audit_file(run, model, prompts=prompts, device=device, known=names, budget=budget, seed=seed)
        if not quiet:
            print_circuit_audit(told, _console())
        return
    from spex_mech.auditing import audit as run_audit
    from spex_mech.printing import print_audit
    from spex_mech.reporting import write_report
    from spex_mech.runs import load_run
    from spex_mech.studies import open_study, reopen

    found = load_run(run)
    study = reopen(run, device=device) if model is None else open_study(model, prompts=prompts, device=device)
    names = list(study.card.published.nodes if study.card else ()) if names is None else names
    result = run_audit(
        found, study.subject, study.task, fresh_seed=seed, budget=budget, size=size, known=names, out=run,
        progress=not quiet,
    )  # fmt: skip
    write_report(run)
    if not quiet:
        print_audit(result, run, _console())


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="Run folder of discover, audited or not.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="File to write; default: report.html in the folder.")
    ] = None,
) -> None:
    """Write a run as one self-contained HTML page, for a person who did not run it."""
    from spex_mech.reporting import write_report

    _console().print(f"wrote {write_report(run, out)}", highlight=False, soft_wrap=True)


@app.command()
def export(
    circuit: Annotated[Path, typer.Argument(help="circuit.json of a run; or a circuit in HIF, of EAP-IG or MIB.")],
    to: Annotated[
        str,
        typer.Option("--to", help="json, hif, neuronpedia, mib, graphml, gexf, dot, node-link or clique."),
    ],
    out: Annotated[Path, typer.Option("--out", help="File to write.")],
    model: Annotated[str | None, typer.Option(help="mib: card or model, where neither file nor run says.")] = None,
    device: Device = None,
) -> None:
    """Write a circuit for other tools; says what the format loses."""
    from spex_mech.exchange import convert

    note = convert(circuit, out, to, model, device)
    _console().print(f"wrote {out}. {note}", highlight=False, soft_wrap=True)


@app.command()
def doctor(
    model: Annotated[str | None, typer.Argument(help="A card, model folder or hub id to bind and self-test.")] = None,
    device: Device = None,
) -> None:
    """Check the installation; with a model, bind it, run its self-test and list its sites."""
    from spex_mech.printing import print_environment, print_subject

    print_environment(_console())
    if model is not None:
        from spex_mech.studies import open_subject

        print_subject(open_subject(model, device=device), _console())


@app.command()
def bench(
    what: Annotated[str, typer.Argument(metavar="ablation|decode|accuracy|players|keep", help="What to measure.")],
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write every cell measured to this file.")] = None,
    quick: Annotated[bool, typer.Option(help="Small sizes only: does it run, not how fast.")] = False,
    peer_python: Annotated[
        Path | None, typer.Option(help="decode, accuracy: an interpreter that has shapiq to run beside.")
    ] = None,
    cards: Annotated[
        Path | None, typer.Option(help="accuracy, players, keep: a folder of cards to measure on.")
    ] = None,
    search: Annotated[
        bool, typer.Option(help="accuracy: shapiq's ProxySPEX with its slow default search too.")
    ] = False,
    budgets: Annotated[str | None, typer.Option(help="accuracy, keep: numbers of masks, such as 64,256,1024.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="accuracy: a folder of responses and finished rows, to go on from.")
    ] = None,
) -> None:
    """Measure the engine or the decoders against floors, neighbours and each other, all in one run."""
    from spex_mech.printing import print_bench

    peer = None if peer_python is None else str(peer_python)
    if what == "ablation":
        from spex_mech.bench.ablation import run as run_ablation

        result = run_ablation(device, quick)
    elif what == "decode":
        from spex_mech.bench.decode import run as run_decode

        result = run_decode(device, quick, peer)
    elif what == "accuracy":
        from spex_mech.bench.accuracy import run as run_accuracy

        result = run_accuracy(quick, cards, peer, search, _numbers(budgets), out)
    elif what == "players":
        from spex_mech.bench.players import run as run_players

        result = run_players(quick, cards)
    elif what == "keep":
        from spex_mech.bench.keeps import run as run_keeps

        result = run_keeps(quick, cards, _numbers(budgets))
    else:
        raise SpexMechError(
            f"there is no bench {what!r}; the benches are ablation, decode, accuracy, players and keep."
        )
    print_bench(result, json_file, _console())


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


def _numbers(text: str | None) -> tuple[int, ...]:
    """Numbers of masks, ascending; none: the bench's own."""
    parts = [] if text is None else text.split(",")
    if not all(part.strip().isdecimal() and int(part) >= 16 for part in parts):
        raise SpexMechError(f"--budgets {text!r} was given; it is numbers of at least 16 masks, such as 64,256,1024.")
    return tuple(sorted({int(part) for part in parts}))


def _discover(what: str, out: Path, *, quiet: bool, keep: str = "0.5", **options: Any) -> Any:
    from spex_mech.discovery import discover as run
    from spex_mech.printing import print_discovery, print_question
    from spex_mech.reporting import write_report
    from spex_mech.studies import open_study, save_source

    prompts, model = options.pop("prompts", None), options.pop("model", None)
    study = open_study(
        what,
        prompts=prompts,
        model=model,
        components=options.pop("components", None),
        device=options.pop("device", None),
    )
    replacement = options.pop("replacement", None) or study.replacement
    say: Callable[..., None] = (lambda *_: None) if quiet else print_question
    say(study, options["budget"], out, _console())
    found = run(
        study.subject, study.task, study.components, keep=_probabilities(keep), replacement=replacement,
        per=study.per if replacement == study.replacement else None, out=out, progress=not quiet, **options,
    )  # fmt: skip
    save_source(out, what, prompts, model)
    write_report(out)
    if not quiet:
        print_discovery(found, out, _console())
    return found


def _probabilities(text: str) -> float | list[float] | str:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        return text
    return numbers[0] if len(numbers) == 1 else numbers


def _console() -> Console:
    return Console(highlight=False)


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)


if __name__ == "__main__":
    main()
