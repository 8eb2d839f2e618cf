"""`Score`: a trained model and test points → one number a point, with its unit."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from spex_mech.errors import ResponseError, TaskError

Numbers = NDArray[np.float64]
ScoreName = Literal["log_odds", "log_prob", "prob", "prediction", "squared_error"]
ScoreLike = ScoreName | Callable[..., Any]
UNITS = {
    "log_odds": "logit", "log_prob": "nat", "prob": "probability", "prediction": "prediction",
    "squared_error": "squared error",
}  # fmt: skip
OF_CLASSES = ("log_odds", "log_prob", "prob")
LEAST_PROB = 1e-3  # probabilities are no nearer to 0 and 1 than this: a few examples make many models too sure


@dataclass(frozen=True, eq=False)
class Score:
    """What is asked of a trained model.

    Attributes:
        name: "log_odds" ``log p/(1-p)`` of the right class, "log_prob", "prob"; of regression "prediction" and
            "squared_error"; or a function ``(model, x, y) → one number a test point``.
        x, y: the test points.
        classes: all classes, in the order of a torch module's outputs; None for regression.
    """

    name: ScoreLike
    x: Any
    y: NDArray[Any] | None
    classes: NDArray[Any] | None

    @property
    def unit(self) -> str:
        return UNITS[self.name] if isinstance(self.name, str) else "metric"

    @property
    def outputs(self) -> int:
        return len(self.x)

    def of_fitted(self, fitted: Any) -> Numbers:
        """Of a scikit-learn estimator."""
        if callable(self.name):
            return self._own(fitted)
        if self.classes is None:
            return self.of_predictions(fitted.predict(self.x))
        found = fitted.predict_proba(self.x)
        whole = np.zeros((len(found), len(self.classes)))
        whole[:, np.searchsorted(self.classes, fitted.classes_)] = found
        return self.of_probabilities(whole)

    @torch.no_grad()
    def of_module(self, module: nn.Module) -> Numbers:
        """Of a torch module; its outputs are logits of the classes, or predictions."""
        if callable(self.name):
            return self._own(module)
        out = module(self.x).double()
        if self.classes is None:
            return self.of_predictions(out.reshape(len(self.x)).numpy())
        return self.of_probabilities(out.softmax(1).numpy())

    def of_probabilities(self, found: Numbers) -> Numbers:
        """Of class probabilities ``[point, class]``."""
        if callable(self.name):
            raise TaskError(
                "with one class or none left there is no model that a score of your own could be asked of. Give a "
                "function of the kept examples instead of an estimator, or keep examples of each class in no group."
            )
        assert self.classes is not None
        assert self.y is not None
        right = np.searchsorted(self.classes, self.y)
        p = np.clip(found[np.arange(len(found)), right], LEAST_PROB, 1 - LEAST_PROB)
        if self.name == "prob":
            return p
        return np.log(p) if self.name == "log_prob" else np.log(p) - np.log1p(-p)

    def of_predictions(self, found: Any) -> Numbers:
        """Of numbers, one a point."""
        try:
            numbers = np.asarray(found, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise ResponseError(f"the model predicts no numbers: {error}. Give score=… that makes some.") from error
        if self.name != "squared_error":
            return numbers
        assert self.y is not None
        return (numbers - self.y.astype(np.float64)) ** 2

    def _own(self, model: Any) -> Numbers:
        assert callable(self.name)
        numbers = np.ravel(np.asarray(self.name(model, self.x, self.y), dtype=np.float64))
        if len(numbers) != self.outputs:
            raise ResponseError(f"the score gave {len(numbers)} numbers for {self.outputs} test points; one each.")
        return numbers


def check_score(name: ScoreLike, y: NDArray[Any] | None, classes: NDArray[Any] | None, probable: bool) -> None:
    """Raises `TaskError` where a score does not fit the model and the test points."""
    if callable(name):
        return
    if name not in UNITS:
        raise TaskError(f"there is no score {name!r}; there are {', '.join(UNITS)}, or a function of your own.")
    if (name in OF_CLASSES) != (classes is not None) or (name in OF_CLASSES and not probable):
        raise TaskError(
            f"score {name!r} was asked of a model that "
            + ("predicts numbers" if classes is None else "gives no probabilities" if not probable else "tells classes")
            + ". A classifier with predict_proba has log_odds, log_prob and prob, others prediction and squared_error."
        )
    if y is None and name != "prediction":
        raise TaskError(f"score {name!r} compares with the truth; give test_y=….")
    unknown = [] if classes is None or y is None else sorted(set(y.tolist()) - set(classes.tolist()), key=str)
    if unknown:
        raise TaskError(f"the test points have classes {unknown} that no training example has.")
