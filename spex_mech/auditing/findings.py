"""The parts of an `Audit` and a `CircuitAudit`: one frozen dataclass for each kind of evidence."""

from dataclasses import dataclass
from typing import Annotated

from spex_mech.auditing.verdicts import RATE, STABLE_FROM, is_stable, is_there
from spex_mech.files.schema import between


@dataclass(frozen=True)
class Fresh:
    """How well the polynomial predicts masks drawn anew; `r2` is None where their values do not vary.

    `measured` and `predicted` are the values behind it, of the first masks, for a picture.
    """

    masks: int
    keep_probs: tuple[float, ...]
    r2: float | None
    rmse: float
    measured: tuple[float, ...] = ()
    predicted: tuple[float, ...] = ()


@dataclass(frozen=True)
class Verified:
    """A set of components, all others ablated: predicted, then measured.

    `faithfulness` is that of the measured value; `gap` how far `predicted` is from the best possible prediction (see
    `Selection.gap`); `kl` is KL(intact ‖ circuit) in nats at the scored position.
    """

    names: tuple[str, ...]
    predicted: float
    value: float
    faithfulness: float
    method: str
    gap: float | None = None
    kl: float | None = None


@dataclass(frozen=True)
class SizeRow:
    """One of MIB's sizes: the sets chosen to preserve and to help, and random sets of the same size as the null.

    `random_as_good` is the share of random sets whose faithfulness is at least as near to 1 as that of `preserve`.
    """

    size: float
    count: Annotated[int, between(0, 2**53)]
    preserve: Verified
    help: Verified
    random_mean: float | None = None
    random_std: float | None = None
    random_as_good: float | None = None


@dataclass(frozen=True)
class SizeScore:
    """The best-scored components of one of MIB's sizes, all others ablated: faithfulness.

    `preserve` keeps those with the largest scores by size, `help` those that help most; `random` is the mean over
    random sets of as many components, None where the budget did not reach or there is only one such set.
    """

    size: float
    count: int
    preserve: float
    help: float
    random: float | None = None


@dataclass(frozen=True)
class RankingRow:
    """A way to rank components, scored: by the circuits it makes at MIB's sizes and against a known circuit.

    `masks` is what it cost, the circuits' own masks not counted. None where there is nothing to compare with.
    """

    name: str
    masks: int
    cpr: float | None
    cmd: float | None
    auroc: float | None = None
    auroc_over_sizes: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Knockout:
    """A knockout K and what it says of the circuit, in the metric's unit.

    Attributes:
        removed: the names in K.
        component: for minimality, the component v that is taken out besides; None for completeness.
        predicted: the score by the polynomial; measured: by forward passes, None where the budget did not reach.
    """

    removed: tuple[str, ...]
    component: str | None
    predicted: float
    measured: float | None = None


@dataclass(frozen=True)
class Confirmation:
    """One interaction of the metric itself, measured again. Numbers in the metric's unit.

    Attributes:
        components: the set; claimed: its coefficient in the circuit.
        predicted: what the polynomial predicts for these very contexts; estimate: what was measured, ± stderr.
        contexts: how many; p_value: of a two-sided t-test of the estimate over contexts; q_value: adjusted over all
            interactions that were measured (Benjamini and Hochberg 1995).
        knockout: the set's knockout coefficient at the intact model, measured; stderr over prompts, None with one.
    """

    components: tuple[str, ...]
    claimed: float
    predicted: float
    estimate: float
    stderr: float
    contexts: int
    p_value: float
    q_value: float
    knockout: float
    knockout_stderr: float | None

    @property
    def order(self) -> int:
        return len(self.components)

    def confirmed(self, rate: float = RATE) -> bool:
        """Whether it is there at this false discovery rate, with the sign that was claimed."""
        return is_there(self.q_value, self.estimate, self.claimed, rate)


@dataclass(frozen=True)
class BackupCheck:
    """A group of backups, measured again; see `circuit.backups` for what joint and excess are.

    `p_value` is the largest of one-sided t-tests over contexts of all inequalities of a group, doubled; `q_value` is
    adjusted over all groups measured. `intact_joint` and `intact_excess` are the same costs at the intact model.
    """

    components: tuple[str, ...]
    joint: float
    excess: float
    stderr: float
    contexts: int
    p_value: float
    q_value: float
    intact_joint: float
    intact_excess: float

    def confirmed(self, rate: float = RATE) -> bool:
        """Whether the group is there at this false discovery rate."""
        return is_there(self.q_value, self.excess, 1.0, rate)


@dataclass(frozen=True)
class Search:
    """The search for circuits by forward passes, and what it owes to the prompts that chose.

    Attributes:
        masks: that it measured, the polynomial's own choices and single ablations among them.
        splits: of the prompts into halves. One half chooses among all sets measured, the other reports; 0: one prompt.
        cpr, cmd: medians over the splits. Proposals saw all prompts, so this takes off what choosing adds, not all.
        jaccard: of the preserving sets that either half chooses, mean over sizes, median over splits.
    """

    masks: int
    splits: int
    cpr: float | None
    cmd: float | None
    jaccard: float | None


@dataclass(frozen=True)
class StabilityRow:
    """Found again on random halves of the masks or of the prompts ("over"): mean Jaccard index over pairs of halves.

    `bar` is what the field asks of nodes, over at least 100 resamples (Meloux et al. 2025); `method` in words.
    """

    over: str
    resamples: int
    interactions: float | None
    nodes: float | None
    method: str
    bar: float = STABLE_FROM

    @property
    def stable(self) -> bool:
        """Whether the nodes reach the bar."""
        return is_stable(self.nodes, self.bar)


@dataclass(frozen=True)
class ReplacementRow:
    """Another replacement on masks of the run: what of the findings is the replacement's doing.

    Attributes:
        effect: intact less everything ablated, in the metric's unit, under this replacement.
        r2: squared correlation of the responses with the run's; None where either does not vary.
        nodes: Spearman's correlation of the components' strengths; interactions: of the coefficients of interactions;
            signs: share of the ten strongest that keep their sign; top: Jaccard index of the ten strongest.
            All from refits of the run's strongest sets to the same masks; None where there is nothing to compare.
    """

    kind: str
    masks: int
    effect: float
    r2: float | None
    nodes: float | None
    interactions: float | None
    signs: float | None
    top: float | None


@dataclass(frozen=True)
class ContextRow:
    """An interaction where others are kept with another probability than the run's. Effects in the metric's unit.

    `effect` is the mean of ``Σ_A (-1)^|A| v(A)``, A over the ablated subsets: what the set does jointly, free of any
    basis; `here` the same under the run's own masks. `q_value`: that it is not 0, adjusted over all rows.
    """

    components: tuple[str, ...]
    keep_prob: float
    here: float
    effect: float
    stderr: float
    contexts: int
    q_value: float

    @property
    def holds(self) -> bool:
        """Whether it is there, with the sign it has under the run's masks."""
        return is_there(self.q_value, self.effect, self.here)


@dataclass(frozen=True)
class Known:
    """The audited circuit beside a known one; `outside` are known components that were not studied."""

    names: tuple[str, ...]
    outside: tuple[str, ...]
    precision: float | None
    recall: float | None
