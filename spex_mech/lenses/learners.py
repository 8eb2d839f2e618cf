"""Learners: examples that are kept → a model trained on them → its scores on test points. One training a mask."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor, nn

from spex_mech.errors import ResponseError, SpexMechError
from spex_mech.lenses.scores import Score

_Numbers = NDArray[np.float64]
KeptExamples = Int[NDArray[np.int64], " example"]
_SOLVED = 1 << 24  # numbers in a batch of linear systems


class Learner(Protocol):
    """Examples in, numbers out; the numbers depend on the examples alone."""

    @property
    def unit(self) -> str: ...
    @property
    def outputs(self) -> int: ...
    def values(self, keep: Bool[Tensor, "mask example"], processes: int) -> Float[Tensor, "mask output"]: ...


def one_by_one(
    value: Callable[[KeptExamples], Any], keep: Bool[Tensor, "mask example"], processes: int
) -> Float[Tensor, "mask output"]:
    """One call a mask, in this process or in several; raises `ResponseError` where it gives anything but numbers."""
    kept = [row.nonzero()[:, 0].numpy() for row in keep]
    if processes == 1:
        given = [value(one) for one in kept]
    else:
        try:
            from joblib import Parallel, delayed
        except ImportError as error:
            raise SpexMechError(
                "several processes need joblib, which comes with scikit-learn; or processes=1."
            ) from error
        given = Parallel(n_jobs=processes)(delayed(value)(one) for one in kept)
    try:
        values = np.array([np.ravel(np.asarray(one, dtype=np.float64)) for one in given])
    except (TypeError, ValueError) as error:
        raise ResponseError(f"a training gave no numbers, or not as many as another: {error}.") from error
    return torch.from_numpy(values).float()


@dataclass(frozen=True)
class FunctionLearner:
    """A function of the user's: the numbers of the examples that are kept → one number, or `outputs` of them."""

    function: Callable[[KeptExamples], Any]
    unit: str = "metric"
    outputs: int = 1

    def values(self, keep: Bool[Tensor, "mask example"], processes: int) -> Float[Tensor, "mask output"]:
        values = one_by_one(self.function, keep, processes)
        if values.shape[1] != self.outputs:
            raise ResponseError(
                f"the training function gave {values.shape[1]} numbers; {self.outputs} were announced (outputs=…)."
            )
        return values


@dataclass(frozen=True, eq=False)
class EstimatorLearner:
    """A scikit-learn estimator (anything with ``fit`` and ``predict``), fitted anew to what is kept.

    Where the examples of a mask have one class only, that class is certain; where there are none, all classes are
    equally likely, and a regressor says the mean of all y.
    """

    estimator: Any
    x: NDArray[Any]
    y: NDArray[Any]
    score: Score

    @property
    def unit(self) -> str:
        return self.score.unit

    @property
    def outputs(self) -> int:
        return self.score.outputs

    def values(self, keep: Bool[Tensor, "mask example"], processes: int) -> Float[Tensor, "mask output"]:
        return one_by_one(self._value, keep, processes)

    def _value(self, kept: KeptExamples) -> _Numbers:
        y = self.y[kept]
        if self.score.classes is None:
            if not len(y):
                return self.score.of_predictions(np.full(len(self.score.x), float(np.mean(self.y))))
            return self.score.of_fitted(self._fitted(kept))
        there = np.unique(y)
        if len(there) < 2:
            return self.score.of_probabilities(self._without_fit(there))
        return self.score.of_fitted(self._fitted(kept))

    def _fitted(self, kept: KeptExamples) -> Any:
        return copy.deepcopy(self.estimator).fit(self.x[kept], self.y[kept])

    def _without_fit(self, there: NDArray[Any]) -> _Numbers:
        classes = self.score.classes
        assert classes is not None
        row = np.isin(classes, there).astype(float) if len(there) else np.full(len(classes), 1 / len(classes))
        return np.tile(row, (len(self.score.x), 1))


@dataclass(frozen=True, eq=False)
class ModuleLearner:
    """A torch module, trained from the weights it has: full batches, Adam, cross-entropy or squared error.

    With no example it is the module as it is. Every training has the same random numbers.

    Attributes:
        fit: instead: ``fit(module, x, y)`` trains the module it is given, in place.
    """

    module: nn.Module
    x: Tensor
    y: Tensor
    score: Score
    steps: int = 200
    lr: float = 0.01
    seed: int = 0
    fit: Callable[[nn.Module, Tensor, Tensor], Any] | None = None

    @property
    def unit(self) -> str:
        return self.score.unit

    @property
    def outputs(self) -> int:
        return self.score.outputs

    def values(self, keep: Bool[Tensor, "mask example"], processes: int) -> Float[Tensor, "mask output"]:
        return one_by_one(self._value, keep, processes)

    def _value(self, kept: KeptExamples) -> _Numbers:
        with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad():
            module, rows = copy.deepcopy(self.module), torch.from_numpy(kept)
            torch.manual_seed(self.seed)
            module.train()
            if len(rows):
                (self.fit or self._train)(module, self.x[rows], self.y[rows])
        return self.score.of_module(module.eval())

    def _train(self, module: nn.Module, x: Tensor, y: Tensor) -> None:
        classes = self.score.classes is not None
        optimizer = torch.optim.Adam(module.parameters(), lr=self.lr)
        for _ in range(self.steps):
            out = module(x)
            loss = nn.functional.cross_entropy(out, y) if classes else nn.functional.mse_loss(out.reshape(y.shape), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


@dataclass(frozen=True, eq=False)
class LinearLearner:
    """The cheap stand-in: ridge regression on fixed features, solved in closed form for many masks at once.

    ``W(k) = (Φᵀ diag(k) Φ + l2 I)⁻¹ Φᵀ diag(k) Y``, where Φ are the features and a constant, and Y is y, or 1 and 0 for
    classes. The value of a test point is its prediction; with classes the score of its own minus the mean of the
    others. It says what a linear model would learn from the examples, not what another model does.
    """

    x: _Numbers
    targets: _Numbers
    test: _Numbers
    weights: _Numbers  # [output, target]: how the scores of a test point make its value
    l2: float = 1.0
    unit: str = "score"

    @property
    def outputs(self) -> int:
        return len(self.test)

    def values(self, keep: Bool[Tensor, "mask example"], processes: int) -> Float[Tensor, "mask output"]:
        """Closed form needs one process; `processes` is for learners that train."""
        x, test = (torch.from_numpy(np.c_[part, np.ones(len(part))]) for part in (self.x, self.test))
        solve = self._primal if x.shape[1] <= len(x) else self._dual
        batch = max(1, _SOLVED // min(x.shape) ** 2)
        parts = [solve(x, test, part.double()) for part in keep.split(batch)]
        scores = torch.cat(parts) if parts else torch.zeros(0, len(test), self.targets.shape[1])
        return (scores * torch.from_numpy(self.weights)).sum(2).float()

    def _primal(self, x: Tensor, test: Tensor, keep: Tensor) -> Float[Tensor, "mask output target"]:
        kept = keep[:, :, None] * x
        gram = kept.mT @ x + self.l2 * torch.eye(x.shape[1], dtype=x.dtype)
        weights = torch.linalg.solve(gram, kept.mT @ torch.from_numpy(self.targets))
        return test @ weights

    def _dual(self, x: Tensor, test: Tensor, keep: Tensor) -> Float[Tensor, "mask output target"]:
        gram = (x @ x.T) * keep[:, :, None] * keep[:, None] + self.l2 * torch.eye(len(x), dtype=x.dtype)
        weights = torch.linalg.solve(gram, keep[:, :, None] * torch.from_numpy(self.targets))
        return (test @ x.T) * keep[:, None] @ weights


def seeded(estimator: Any, seed: int) -> Any:
    """A copy of an estimator whose random states that were not set are `seed`, so that a mask has one value."""
    made = copy.deepcopy(estimator)
    if hasattr(made, "get_params"):
        loose = [name for name, value in made.get_params().items() if name.endswith("random_state") and value is None]
        made.set_params(**dict.fromkeys(loose, seed))
    return made


def linear_learner(
    x: _Numbers, y: NDArray[Any], test: _Numbers, test_y: Sequence[Any] | None, classes: NDArray[Any] | None, l2: float
) -> LinearLearner:
    """A `LinearLearner` of regression (`classes` None) or classes."""
    if classes is None:
        return LinearLearner(x, y.astype(float).reshape(len(y), 1), test, np.ones((len(test), 1)), l2, "prediction")
    own = (classes == np.asarray(test_y)[:, None]).astype(float)
    others = (1 - own) / max(1, len(classes) - 1)
    return LinearLearner(x, (classes == y[:, None]).astype(float), test, own - others, l2)
