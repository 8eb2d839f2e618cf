"""`discover_data`: which training examples matter together for what a model says afterwards.

`measuring.spine` says how it is done.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from spex_mech.ablation.wrappers import single_precision
from spex_mech.errors import TaskError
from spex_mech.lenses.learners import (
    EstimatorLearner,
    FunctionLearner,
    Learner,
    ModuleLearner,
    linear_learner,
    seeded,
)
from spex_mech.lenses.scores import Score, ScoreLike, check_score
from spex_mech.lenses.training_examples import Examples, groups_of
from spex_mech.measuring.ask import Ask, KeepProb
from spex_mech.measuring.spine import run
from spex_mech.measuring.workers import Workers
from spex_mech.store.discovery import Discovery
from spex_mech.store.fingerprints import hash_function


@single_precision()
def discover_data(
    learner: Any,
    x: Any = None,
    y: Any = None,
    *,
    test_x: Any = None,
    test_y: Any = None,
    examples: int | None = None,
    groups: Sequence[Sequence[int]] | None = None,
    names: Sequence[str] = (),
    score: ScoreLike | None = None,
    l2: float = 1.0,
    steps: int = 200,
    lr: float = 0.01,
    fit: Callable[[nn.Module, Any, Any], Any] | None = None,
    unit: str = "metric",
    outputs: int = 1,
    identity: str | None = None,
    processes: int = 1,
    budget: int = 1024,
    keep_prob: KeepProb = 0.5,
    decoder: str = "auto",
    link: str = "auto",
    seed: int = 0,
    out: str | Path | None = None,
    progress: bool = False,
    folds: int = 0,
    resamples: int = 0,
    workers: Workers | None = None,
) -> Discovery:
    """Find which training examples matter together for test points, from `budget` trainings on parts of the data.

    ```python
    found = sm.discover_data(LogisticRegression(), x, y, test_x=x_new, test_y=y_new, budget=512)
    found = sm.discover_data(train, examples=60, budget=512)      # train(kept) → a number; kept: example numbers
    ```

    Examples are the components ``d0``, ``d1`` … (or groups of them are), and everything that `discover` gives holds:
    ``F({d3, d7}) > 0`` where both help says that the two teach something together, ``< 0`` that either is enough, as
    near-duplicates are. The value of a mask is the mean over test points of the score after training on the kept
    examples; every point's own values are in ``found.responses``.

    Args:
        learner: a scikit-learn estimator (``fit``, ``predict``); a torch module, trained from the weights it has;
            "linear", a stand-in for either that is solved in closed form, thousands of masks a second: ridge regression
            on `x` as fixed features (such as a network's last layer); or a function from the numbers of the kept
            examples, ascending, to a number or `outputs` of them. Trainings must come out the same each time; random
            states of estimators that are not set are set to `seed`.
        x, y: the training examples; integers, Booleans and texts in y are classes, other numbers a regression.
        test_x, test_y: the test points, one output each.
        examples: for a function: how many there are.
        groups: lists of example numbers, each group kept or left out as one; examples in none always stay. Default:
            each example by itself.
        names: what is known of each component; the node's ``role``. Default: its y, of single examples.
        score: of classes "log_odds" (default), "log_prob", "prob" of the right one, probabilities clipped to
            [.001, .999]; of regression "prediction" (default), "squared_error"; or ``(model, x, y) → a number a
            point``. "linear" has its own: the prediction, or the score of the right class minus the others' mean.
        l2: of "linear".
        steps, lr, fit: of a torch module: full batches of Adam, or your own ``fit(module, x, y)``, in place.
        unit, outputs: of a function's numbers; how many it gives.
        identity: what a run folder knows the learner by. Default: a hash of its code, settings and weights, so that a
            folder is refused once any of it has changed.
        processes: trainings at a time, in processes of their own (needs joblib, which comes with scikit-learn).
        budget, keep_prob, decoder, link, seed, out, progress, folds, resamples: as in `discover`. In a run folder every
            few trainings are on disk before the next begin, and the same call goes on where a killed one was.
        workers: the same, for trainings on other machines too; learner and data are sent to them.

    Raises:
        TaskError: data, groups, names or a score that do not fit together.
        ResponseError: values that are no finite numbers, or a run folder of another experiment.

    Source: SPEX, Kang et al. 2025 (arXiv 2502.13870), and ProxySPEX, Butler et al. 2025 (arXiv 2505.17495), for data.
    """
    ask = Ask(
        budget=budget, keep_prob=keep_prob, decoder=decoder, link=link, seed=seed, out=out, progress=progress,
        folds=folds, resamples=resamples, workers=workers,
    )  # fmt: skip
    if _is_function(learner):
        if examples is None:
            raise TaskError("a function was given without data; say how many examples there are: examples=….")
        count, truth = int(examples), None
        made: Learner = FunctionLearner(learner, unit, outputs)
        kind, sha256 = "function", "" if identity else hash_function(learner)
    else:
        data = _data(x, y, test_x, test_y)
        count, truth = len(data.y), data.y
        made, kind, settings = _learner(learner, data, score, l2, steps, lr, fit, seed)
        sha256 = "" if identity else _content(data, settings)
    lens = Examples(
        count, groups_of(count, groups), made, _positive(processes),
        kind=kind, content=identity or sha256, metric=_told(score, made),
    )  # fmt: skip
    lens = replace(lens, roles=_roles(lens, names, truth))
    return run(lambda _: lens, lens.components, ask)


class _Data:
    """Training examples and test points as arrays of equal lengths."""

    def __init__(self, x: Any, y: Any, test_x: Any, test_y: Any) -> None:
        self.x, self.y, self.test_x = (_array(part) for part in (x, y, test_x))
        self.test_y = None if test_y is None else np.atleast_1d(_array(test_y))
        self.classes = None if self.y.dtype.kind == "f" else np.unique(self.y)


def _data(x: Any, y: Any, test_x: Any, test_y: Any) -> _Data:
    missing = [name for name, part in (("x", x), ("y", y), ("test_x", test_x)) if part is None]
    if missing:
        raise TaskError(f"{', '.join(missing)} must be given: training examples with their y, and test points.")
    data = _Data(x, y, test_x, test_y)
    sizes = [(len(data.x), len(data.y)), (len(data.test_x), len(data.test_x if data.test_y is None else data.test_y))]
    if any(one != other or not one for one, other in sizes) or data.x.shape[1:] != data.test_x.shape[1:]:
        raise TaskError(
            f"x is {data.x.shape}, y {data.y.shape}, test_x {data.test_x.shape}, test_y "
            f"{None if data.test_y is None else data.test_y.shape}; each must have one row an example or point, and "
            "both the same features. One test point is a row: test_x=x[3:4]."
        )
    return data


def _learner(
    learner: Any,
    data: _Data,
    score: ScoreLike | None,
    l2: float,
    steps: int,
    lr: float,
    fit: Callable[[nn.Module, Any, Any], Any] | None,
    seed: int,
) -> tuple[Learner, str, list[Any]]:
    """What trains, its name, and what it is made of, for a hash."""
    if isinstance(learner, str):
        if learner != "linear" or score is not None or (data.classes is not None and data.test_y is None) or l2 <= 0:
            raise TaskError(
                f"learner {learner!r} with score {score!r} and l2 {l2}: the one that is known by name is 'linear', "
                "with l2 > 0, a score of its own, and test_y where y are classes."
            )
        flat, points = (part.reshape(len(part), -1).astype(np.float64) for part in (data.x, data.test_x))
        right = None if data.test_y is None else data.test_y.tolist()
        return linear_learner(flat, data.y, points, right, data.classes, l2), "linear", [l2]
    module = isinstance(learner, nn.Module)
    probable = module or hasattr(learner, "predict_proba")
    if not module and not (hasattr(learner, "fit") and hasattr(learner, "predict")):
        raise TaskError(
            f"{type(learner).__name__} is no learner: give a scikit-learn estimator, a torch module, 'linear', or a "
            "function of the numbers of the kept examples."
        )
    classes = data.classes if probable else None
    chosen = score or ("prediction" if classes is None else "log_odds")
    check_score(chosen, data.test_y, classes, probable)
    if not module:
        ready = seeded(learner, seed)
        made = EstimatorLearner(ready, data.x, data.y, Score(chosen, data.test_x, data.test_y, classes))
        return made, type(learner).__name__, [repr(ready), chosen]
    return (
        _module_learner(learner, data, chosen, steps, lr, seed, fit),
        type(learner).__name__,
        [learner, chosen, steps, lr, seed, fit],
    )


def _module_learner(
    module: nn.Module,
    data: _Data,
    score: ScoreLike,
    steps: int,
    lr: float,
    seed: int,
    fit: Callable[[nn.Module, Any, Any], Any] | None,
) -> ModuleLearner:
    """Data as tensors: numbers as float32, integers (such as tokens) as they are."""
    x, test = (
        torch.from_numpy(part.astype(np.float32) if part.dtype.kind == "f" else part) for part in (data.x, data.test_x)
    )
    targets = data.y.astype(np.float32) if data.classes is None else np.searchsorted(data.classes, data.y)
    _check_module(module, test, data.classes)
    points = Score(score, test, data.test_y, data.classes)
    return ModuleLearner(module, x, torch.from_numpy(targets), points, steps, lr, seed, fit)


def _check_module(module: nn.Module, test: torch.Tensor, classes: NDArray[Any] | None) -> None:
    with torch.no_grad():
        shape = tuple(module.eval()(test).shape)
    wanted = {(len(test), len(classes))} if classes is not None else {(len(test),), (len(test), 1)}
    if shape not in wanted:
        raise TaskError(
            f"the module gives {shape} for {len(test)} test points; it must give "
            + (f"one logit for each of {len(classes)} classes." if classes is not None else "one number each.")
        )


def _content(data: _Data, settings: list[Any]) -> str:
    test_y = None if data.test_y is None else data.test_y.astype(str).tolist()
    return hash_function([data.x, data.y.astype(str).tolist(), data.test_x, test_y, *settings])


def _told(score: ScoreLike | None, made: Learner) -> str:
    return getattr(score, "__name__", None) or (score if isinstance(score, str) else made.unit)


def _roles(lens: Examples, names: Sequence[str], y: NDArray[Any] | None) -> dict[str, str]:
    if names and len(names) != len(lens.groups):
        raise TaskError(f"{len(names)} names were given for {len(lens.groups)} components; give one each.")
    single = y is not None and all(len(group) == 1 for group in lens.groups)
    told = names or ([f"y = {y[i]}" for (i,) in lens.groups] if single and y is not None else [])
    return dict(zip(lens.components.names, told, strict=False))


def _array(part: Any) -> NDArray[Any]:
    found = part.detach().cpu().numpy() if isinstance(part, torch.Tensor) else np.asarray(part)
    return found.astype(np.int64) if found.dtype.kind == "b" else found


def _is_function(learner: Any) -> bool:
    return callable(learner) and not isinstance(learner, nn.Module) and not hasattr(learner, "fit")


def _positive(processes: int) -> int:
    if processes < 1:
        raise TaskError(f"{processes} processes were asked for; it takes one or more.")
    return processes
