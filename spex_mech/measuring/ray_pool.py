"""`spread`: the chunks of a run over Ray actors, each with a lens of its own. The only import of ray.

An actor gets one chunk at a time and is asked for nothing twice. One that dies, says nothing for too long or runs out
of memory is replaced, and its chunk given to another, so a chunk is lost only as long as it is under way. Values go to
whoever asked, in the order in which they come; the same masks pass together as in a run without actors, under the same
settings of torch, so they are the same bits.
"""

import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from math import ceil
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from spex_mech.ablation.batching import is_out_of_memory
from spex_mech.ablation.binding import bind
from spex_mech.ablation.replacement import Replacement
from spex_mech.ablation.respond import Engine
from spex_mech.errors import ModelError, ResponseError, SpexMechError
from spex_mech.files.records import differences, plain
from spex_mech.measuring.lens import Chunk, Lens, Results, Run, Work, in_turn
from spex_mech.measuring.workers import Workers, source_of

_OOM = "ran out of memory"


def choose_run(workers: Workers | None, device: torch.device) -> Run:
    """How the chunks of a run are passed: in turn, or by workers. Only these import ray."""
    if workers is None:
        return in_turn
    source = workers.source
    return spread(
        replace(workers, source=source_of(source, device=device.type)) if isinstance(source, str) else workers
    )


def spread(workers: Workers) -> Run:
    """A `Run` for `measure` that passes chunks through workers; `workers.source` is a function, or None.

    The run raises:
        ModelError: ray is not installed, no cluster answers or has room, a worker loads another model, or what is
            measured cannot be sent to one.
        ResponseError: the workers fail again and again.
    """

    def run(lens: Lens, chunks: Work) -> Results:
        chunks = iter(chunks)
        head = next(chunks, None)
        if head is None:  # all of it came from the journal
            return
        _check_device(workers, lens.device)
        with _session(workers) as ray:
            crew = _Crew(ray, workers, _send(ray, _pack(lens, workers)), deque([head]), chunks)
            try:
                yield from crew.results()
            finally:
                crew.dismiss()

    return run


def _check_device(workers: Workers, here: torch.device) -> None:
    """Replacement values and batch sizes are settled here, so workers are where the model is."""
    if workers.gpus_each and here.type == "cpu":
        raise ModelError(
            "workers with GPUs were asked for, but the model here is on the CPU, where replacement values and "
            "batch sizes are settled: their bits would differ. Load it with device='cuda' too."
        )
    if here.type == "cuda" and not workers.gpus_each:
        raise ModelError(
            "the model is on a GPU, of which workers see nothing unless they are given one: ask for a GPU each, or a "
            "share of one (gpus_each=0.5, --gpus-per-worker 0.5); or load it with device='cpu'."
        )


def _pack(lens: Lens, workers: Workers) -> dict[str, Any]:
    """What a worker needs: what makes its lens, and how torch is set here."""
    return {
        "lens": _of_model(lens, workers.source) if isinstance(lens, Engine) else partial(_as_it_is, lens),
        "threads": torch.get_num_threads(),
        "precision": torch.get_float32_matmul_precision(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "warn_only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "dtype": torch.get_default_dtype(),
    }


def _of_model(engine: Engine, source: Any) -> Callable[[], Engine]:
    """Makes the engine again around a model from `source`, replacement values on the CPU until then."""
    if source is None:
        raise ModelError("workers of a model load one of their own: Workers(source=…), a card, folder, id or function.")
    references = {site: values.cpu() for site, values in engine.replacement.references.items()}
    packed = replace(engine.replacement, references=references)
    parts = {"task": engine.task, "components": engine.components, "batch_rows": dict(engine.rows)}
    return partial(_engine_there, source, plain(engine.subject.provenance), packed, parts)


def _engine_there(source: Any, provenance: dict[str, Any], packed: Replacement, parts: dict[str, Any]) -> Engine:
    """In the worker: load the model and see that it is the right one."""
    subject = bind(source())
    found = differences(provenance, plain(subject.provenance), sides=("here", "in the worker"))
    if found:
        raise ModelError(
            f"a worker loaded another model than the run was begun with: it differs in {'; '.join(found[:4])}. "
            "Let the workers' source be what this model was loaded from."
        )
    references = {site: values.to(subject.device) for site, values in packed.references.items()}
    return Engine(subject, replacement=replace(packed, references=references), **parts)


def _as_it_is(lens: Lens) -> Lens:
    return lens


def _send(ray: Any, pack: dict[str, Any]) -> Any:
    try:
        return ray.put(pack)
    except Exception as error:  # whatever pickling somebody's object raises
        raise ModelError(
            f"workers cannot be sent what they are to measure: {_last_line(error)}. Let functions close over plain "
            "values, or measure without workers."
        ) from error


class _Actor:
    """Lives in a process of its own, on whichever machine Ray puts it."""

    def start(self, pack: dict[str, Any]) -> None:
        """Set torch as it is set there, and make the lens."""
        torch.set_num_threads(pack["threads"])  # how a product is split over threads decides its last bits
        torch.set_float32_matmul_precision(pack["precision"])
        torch.use_deterministic_algorithms(pack["deterministic"], warn_only=pack["warn_only"])
        torch.set_default_dtype(pack["dtype"])
        self.lens = pack["lens"]()

    def values(self, *rows: Tensor) -> Float[Tensor, "mask slot"]:
        """See `Lens.values`."""
        return self.lens.values(*rows)


@dataclass(frozen=True)
class _Post:
    """A worker, what it is at (None: loading its model), and since when."""

    actor: Any
    chunk: Chunk | None
    since: float

    @property
    def task(self) -> str:
        if self.chunk is None:
            return "loading the model"
        first, keep = self.chunk[:2]
        return f"the chunk of {len(keep):,} masks that begins at mask {first:,}"


class _Crew:
    """The workers of a run, what each is at, and how often what has failed."""

    def __init__(self, ray: Any, workers: Workers, pack: Any, again: deque[Chunk], chunks: Work) -> None:
        self.ray, self.workers, self.pack, self.again, self.chunks = ray, workers, pack, again, iter(chunks)
        self.remote = ray.remote(_Actor).options(
            num_cpus=workers.cpus_each, num_gpus=workers.gpus_each, max_restarts=0, max_task_retries=0
        )
        self.busy = dict[Any, _Post]()
        self.failures = Counter[int]()  # by chunk
        self.in_a_row = 0
        self.drained = False

    def results(self) -> Results:
        """(number of the first mask, values) of every chunk, as they come."""
        for _ in range(self.workers.count):
            self._hire()
        while self._work_is_left():
            ready, _ = self.ray.wait(list(self.busy), timeout=min(1.0, self.workers.timeout / 4))
            for reference in ready:
                post = self.busy.pop(reference)
                values = self._outcome(reference, post)
                if values is not None and post.chunk is not None:
                    self.in_a_row = 0
                    yield post.chunk[0], values
            self._give_up_the_silent()

    def dismiss(self) -> None:
        """End all workers."""
        for post in self.busy.values():
            self._end(post.actor)
        self.busy.clear()

    def _hire(self) -> None:
        actor = self.remote.remote()
        self.busy[actor.start.remote(self.pack)] = _Post(actor, None, time.monotonic())

    def _end(self, actor: Any) -> None:
        self.ray.kill(actor, no_restart=True)

    def _work_is_left(self) -> bool:
        """Workers that still load their model, or wait for room on the cluster, are not waited for once all is done."""
        return bool(self.again) or not self.drained or any(post.chunk is not None for post in self.busy.values())

    def _next_chunk(self) -> Chunk | None:
        if self.again:
            return self.again.popleft()
        chunk = next(self.chunks, None)
        self.drained = chunk is None
        return chunk

    def _outcome(self, reference: Any, post: _Post) -> Tensor | None:
        """Values, where there are any; the worker gets its next chunk, or is replaced."""
        errors = self.ray.exceptions
        try:
            values = self.ray.get(reference)
        except errors.RayTaskError as error:  # it lives, and raised
            cause = error.cause
            if isinstance(cause, SpexMechError) or (post.chunk and not is_out_of_memory(cause)):
                raise cause from error
            if not is_out_of_memory(cause):
                raise ModelError(
                    f"a worker could not load its model: {_last_line(cause)}. What its source needs, files and "
                    "modules, must be there on the worker's machine too."
                ) from error
            self._replace(post, _OOM)
            return None
        except errors.OutOfMemoryError:
            self._replace(post, _OOM)
            return None
        except errors.RayError as error:
            self._replace(post, f"died ({type(error).__name__})")
            return None
        chunk = self._next_chunk()
        if chunk is None:
            self._end(post.actor)
        else:
            self.busy[post.actor.values.remote(*chunk[1:])] = _Post(post.actor, chunk, time.monotonic())
        return values

    def _give_up_the_silent(self) -> None:
        now = time.monotonic()
        for reference, post in list(self.busy.items()):
            if now - post.since > self.workers.timeout:
                del self.busy[reference]
                self._replace(post, f"said nothing for {self.workers.timeout:g} seconds")

    def _replace(self, post: _Post, why: str) -> None:
        """Another worker in the place of one that is lost; its chunk goes first."""
        self._end(post.actor)
        self.in_a_row += 1
        times = self.in_a_row
        if post.chunk is not None:
            self.failures[post.chunk[0]] += 1
            times = self.failures[post.chunk[0]]
            self.again.appendleft(post.chunk)
        patience = self.workers.patience
        if self.in_a_row > patience * self.workers.count or (post.chunk is not None and times > patience):
            raise ResponseError(
                f"workers fail again and again: the last of {times:,} in a row {why} over {post.task}. What was "
                "finished before is safe in the run folder. See that a worker has the memory and the time that one "
                "chunk takes (gpus_each, cpus_each, timeout), or run without workers to see what happens."
            )
        self._hire()


def _last_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".strip().splitlines()[0][:300]


@contextmanager
def _session(workers: Workers) -> Iterator[Any]:
    """ray, connected: to the session this process has, to a cluster, or to one started here and stopped at the end."""
    try:
        import ray
    except ImportError as error:
        raise ModelError("workers need ray: pip install 'spex-mech[ray]'.") from error
    if ray.is_initialized():
        yield ray
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to anyone
    try:
        _connect(ray, workers)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ModelError(
            f"no Ray cluster at {workers.address!r}: {error}. Start one with `ray start --head`."
        ) from error
    try:
        _check_room(ray, workers)
        yield ray
    finally:
        ray.shutdown()


def _connect(ray: Any, workers: Workers) -> None:
    quiet = {"log_to_driver": False, "logging_level": "error"}
    if workers.address is not None:
        ray.init(address=workers.address, **quiet)
        return
    cores = max(os.cpu_count() or 1, ceil(workers.count * workers.cpus_each))
    ray.init(address="local", num_cpus=cores, include_dashboard=False, **quiet)


def _check_room(ray: Any, workers: Workers) -> None:
    """A machine of our own does not grow; a cluster may."""
    gpus = ray.cluster_resources().get("GPU", 0.0)
    if workers.address is None and workers.count * workers.gpus_each > gpus:
        raise ModelError(
            f"{workers.count} workers with {workers.gpus_each:g} GPUs each were asked for; this machine has {gpus:g}. "
            "Take fewer workers, a share of a GPU each (gpus_each=0.5), or the address of a cluster."
        )
