"""`spex-mech`: parses, calls the spine, prints. No logic of its own."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from spex_mech import __version__
from spex_mech.cli import options as o
from spex_mech.cli.bench_command import bench
from spex_mech.cli.export_command import export
from spex_mech.cli.terminal import Terminal, cautions_shown
from spex_mech.errors import SpexMechError
from spex_mech.files.text import counted

app = typer.Typer(
    name="spex-mech",
    help="Find which attention heads and MLP neurons of a transformer matter together.",
    epilog=o.TEACH_APP,
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def main() -> None:
    """Entry point: 0 on success, 2 for a user's mistake (one message, no traceback), 1 for ours."""
    try:
        with cautions_shown():
            app(args=o.fill_in(sys.argv[1:]))
    except SpexMechError as error:
        Terminal(stderr=True).print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True)
        sys.exit(2)
    except SystemExit as stop:
        if stop.code == o.STOPPED:  # by Ctrl-C, of which typer says nothing
            Terminal(stderr=True).print("stopped; the same command goes on from what its run folder holds.")
        raise


@app.command()
def demo(
    out: o.Out = Path("runs/demo"),
    budget: o.Budget = 512,
    seed: o.Seed = 0,
    quiet: o.Quiet = False,
    as_json: o.Json = False,
) -> None:
    """The main job on the model that ships with the project: which heads make induction happen together?"""
    found = _discover("induction-2l", out, quiet=quiet, as_json=as_json, budget=budget, seed=seed)
    if not quiet and not as_json:
        from spex_mech.cli.printing import print_truth

        print_truth(found, "induction-2l", Terminal())


@app.command(epilog=o.TEACH_DISCOVER)
def discover(
    what: o.What,
    out: o.Out,
    prompts: o.PromptsOption = None,
    model: o.Model = None,
    components: o.Components = None,
    metric: o.MetricOption = None,
    replacement: o.ReplacementOption = None,
    per: o.PerOption = None,
    reference: o.ReferenceOption = None,
    budget: o.BudgetOrRows = None,
    rows: o.RowsOption = None,
    prompts_per_mask: o.PromptsPerMask = "auto",
    keep: o.KeepText = "0.5",
    share: o.Share = 1,
    refine: o.Refine = False,
    device: o.Device = None,
    decoder: o.DecoderOption = "auto",
    link: o.LinkOption = "auto",
    folds: o.Folds = 0,
    resamples: o.Resamples = 0,
    seed: o.Seed = 0,
    workers: o.WorkerCount = None,
    ray: o.RayAddress = None,
    gpus_per_worker: o.GpusEach = 0.0,
    quiet: o.Quiet = False,
    as_json: o.Json = False,
) -> None:
    """Ablate sets of components, recover their interactions, write the circuit."""
    _discover(
        what, out, quiet=quiet, as_json=as_json, prompts=prompts, model=model, components=components, budget=budget,
        rows=rows, prompts_per_mask=o.some_or_all(prompts_per_mask),
        metric=metric, per=per, reference=reference, keep=keep, decoder=decoder, link=link, replacement=replacement,
        shared_layers=share, refine=refine, folds=folds, resamples=resamples, seed=seed,
        device=device, workers=workers, ray=ray, gpus_each=gpus_per_worker,
    )  # fmt: skip


@app.command(epilog=o.TEACH_PLAN)
def plan(
    what: o.What,
    prompts: o.PromptsOption = None,
    model: o.Model = None,
    components: o.Components = None,
    metric: o.MetricOption = None,
    replacement: o.ReplacementOption = None,
    per: o.PerOption = None,
    reference: o.ReferenceOption = None,
    budget: o.BudgetOrRows = None,
    rows: o.RowsOption = None,
    prompts_per_mask: o.PromptsPerMask = "auto",
    keep: o.KeepText = "0.5",
    share: o.Share = 1,
    device: o.Device = None,
    decoder: o.DecoderOption = "auto",
    seed: o.Seed = 0,
    gpu: o.Gpu = None,
    price: o.Price = None,
    simulate: Annotated[bool, typer.Option(help="Plant a polynomial and decode it under as many masks.")] = False,
    as_json: o.Json = False,
) -> None:
    """Tell what a run will take, and which way of asking fits it; runs one chunk of its masks."""
    from dataclasses import asdict

    from spex_mech.cli.commands import run_plan
    from spex_mech.cli.printing import print_plan

    told = run_plan(
        what, prompts=prompts, model=model, components=components, replacement=replacement, budget=budget, keep=keep,
        rows=rows, prompts_per_mask=o.some_or_all(prompts_per_mask), metric=metric, per=per, reference=reference,
        shared_layers=share, device=device, decoder=decoder, seed=seed,
        gpu=gpu, price_per_hour=price, simulate=simulate,
    )  # fmt: skip
    if as_json:
        _echo(asdict(told))
    else:
        print_plan(told, Terminal())


@app.command(epilog=o.TEACH_RESPOND)
def respond(
    what: o.What,
    out: o.Out,
    shard: Annotated[str, typer.Option(help="Which of how many equal shares to measure, such as 2/8.")] = "1/1",
    prompts: o.PromptsOption = None,
    model: o.Model = None,
    components: o.Components = None,
    metric: o.MetricOption = None,
    replacement: o.ReplacementOption = None,
    per: o.PerOption = None,
    reference: o.ReferenceOption = None,
    budget: o.BudgetOrRows = None,
    rows: o.RowsOption = None,
    prompts_per_mask: o.PromptsPerMask = "auto",
    keep: o.KeepText = "0.5",
    share: o.Share = 1,
    device: o.Device = None,
    decoder: o.DecoderOption = "auto",
    seed: o.Seed = 0,
    workers: o.WorkerCount = None,
    ray: o.RayAddress = None,
    gpus_per_worker: o.GpusEach = 0.0,
    quiet: o.Quiet = False,
    as_json: o.Json = False,
) -> None:
    """Measure masks and decode nothing: one share of a run, for machines that know nothing of each other."""
    from spex_mech.cli.commands import run_respond

    told = run_respond(
        what, out, shard=shard, quiet=quiet or as_json, prompts=prompts, model=model, components=components,
        replacement=replacement, budget=budget, keep=keep, shared_layers=share, device=device, decoder=decoder,
        rows=rows, prompts_per_mask=o.some_or_all(prompts_per_mask),
        metric=metric, per=per, reference=reference, seed=seed,
        workers=workers, ray=ray, gpus_each=gpus_per_worker,
    )  # fmt: skip
    if as_json:
        _echo(told)
    elif not quiet:
        known = f", {told['resumed_masks']:,} of them before" if told["resumed_masks"] else ""
        Terminal().print(
            f"shard {told['shard']}: {told['masks']:,} masks measured{known}; in {escape(str(out))}", soft_wrap=True
        )


@app.command(epilog=o.TEACH_RESPOND)
def merge(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Folders of shards, or one that holds them.")],
    out: o.Out,
    quiet: o.Quiet = False,
    as_json: o.Json = False,
) -> None:
    """Put the shards of a run together; says what is missing. Needs no model."""
    from spex_mech.cli.commands import run_merge

    told = run_merge(folders, out)
    if as_json:
        _echo(told)
    elif not quiet:
        Terminal().print(
            f"{counted(told['masks'], 'mask')} × {counted(told['prompts'], 'prompt')}; in {escape(str(out))}",
            soft_wrap=True,
        )


@app.command(epilog=o.TEACH_DECODE)
def decode(
    responses: Annotated[Path, typer.Argument(help="responses.safetensors of a run.")],
    out: o.Out,
    decoder: o.DecoderOption = "auto",
    link: o.LinkOption = "auto",
    folds: o.Folds = 0,
    resamples: o.Resamples = 0,
    seed: o.Seed = 0,
    quiet: o.Quiet = False,
    as_json: o.Json = False,
) -> None:
    """Decode responses that were measured before; needs no model."""
    from spex_mech.api.discover import decode as run
    from spex_mech.api.report import write_report
    from spex_mech.store.responses import Responses

    given = Responses.load(responses)
    found = run(given, decoder=decoder, link=link, seed=seed, out=out, folds=folds, resamples=resamples)
    write_report(out)
    _tell(found, out, quiet, as_json)


@app.command(epilog=o.TEACH_AUDIT)
def audit(
    run: o.RunOrCircuit,
    budget: o.AuditBudget = 2048,
    seed: o.AuditSeed = 1,
    size: o.AuditSize = None,
    known: o.KnownOption = None,
    model: o.OtherModel = None,
    prompts: o.OtherPromptsOption = None,
    device: o.Device = None,
    quiet: o.Quiet = False,
    as_json: o.Json = False,
) -> None:
    """Put a run to the test on fresh masks, within a budget; writes audit.json and the report beside it."""
    from dataclasses import asdict

    from spex_mech.cli.audit_commands import audit_file, audit_run
    from spex_mech.cli.audit_printing import print_trial

    names = None if known is None else known.split(",")
    asked: dict[str, Any] = {"prompts": prompts, "device": device, "known": names, "budget": budget, "seed": seed}
    if run.is_file():
        told: Any = audit_file(run, model, **asked)
    else:
        told = audit_run(run, model, size=size, progress=not quiet and not as_json, **asked)
    if as_json:
        _echo(asdict(told))
    elif not quiet:
        print_trial(told, run, Terminal())


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="Run folder of discover, audited or not.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="File to write; default: report.html in the folder.")
    ] = None,
    prompts: o.ShownPrompts = None,
) -> None:
    """Write a run as one self-contained HTML page, for a person who did not run it."""
    from spex_mech.api.report import write_report

    Terminal().print(f"wrote {escape(str(write_report(run, out, prompts)))}", soft_wrap=True)


app.command(epilog=o.TEACH_EXPORT)(export)


@app.command(epilog=o.TEACH_DOCTOR)
def doctor(
    model: Annotated[
        str | None,
        typer.Argument(help="A card, model folder or hub id to bind and self-test.", autocompletion=o.complete_card),
    ] = None,
    device: o.Device = None,
    as_json: o.Json = False,
) -> None:
    """Check the installation; with a model, bind it, run its self-test and list its sites."""
    from spex_mech.cli.environment import describe_environment, print_environment

    found = describe_environment()
    if not as_json:
        print_environment(Terminal())
    if model is not None:
        from spex_mech.cli.printing import describe_subject, print_subject
        from spex_mech.gallery.studies import open_subject

        subject = open_subject(model, device=device)
        found["model"] = describe_subject(subject)
        if not as_json:
            print_subject(subject, Terminal())
    if as_json:
        _echo(found)
    if found["problems"]:
        raise SpexMechError(f"{len(found['problems'])} packages do not fit: {'; '.join(found['problems'])}.")


app.command()(bench)


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


def _discover(what: str, out: Path, *, quiet: bool, as_json: bool, **asked: Any) -> Any:
    from spex_mech.cli.commands import run_discover
    from spex_mech.cli.printing import print_question

    def show(study: Any, cost: Any) -> None:
        print_question(study, cost, out, Terminal())

    found = run_discover(what, out, show=None if quiet or as_json else show, **asked)
    _tell(found, out, quiet, as_json)
    return found


def _tell(found: Any, out: Path, quiet: bool, as_json: bool) -> None:
    """The answer: for machines, for people, or not at all."""
    if as_json:
        from spex_mech.cli.commands import answer_json

        typer.echo(answer_json(found, out))
    elif not quiet:
        from spex_mech.cli.printing import print_discovery

        print_discovery(found, out, Terminal())


def _echo(value: Any) -> None:
    from spex_mech.cli.commands import as_json

    typer.echo(as_json(value))
