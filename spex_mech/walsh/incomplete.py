"""What may be done with samples whose masks met some outputs only, by whatever was made for masks that met them all."""

from spex_mech.errors import DecodeError
from spex_mech.walsh.decoding import Samples


def headline(samples: Samples) -> Samples:
    """The samples as they are where every mask met all outputs; else those of one output, the headline.

    What is estimated from it is of the mean over all outputs. Its errors over masks are also over which outputs each
    mask met, since both were drawn together; of outputs that nobody measured it says nothing.

    >>> import torch
    >>> keep, met = torch.tensor([[True], [True], [False], [False]]), torch.tensor([[0], [1], [0], [1]])
    >>> headline(Samples(keep, torch.tensor([[1.0], [3.0], [3.0], [5.0]]), met=met, outputs=2)).values.tolist()
    [[1.0], [1.0], [5.0], [5.0]]
    """
    if samples.met is None:
        return samples
    return Samples(samples.keep, samples.mean_values[:, None], samples.design)


def refuse_incomplete(samples: Samples, decoder: str) -> None:
    """Raise `DecodeError` where masks met some outputs only and `decoder` needs the value of each for every one."""
    if samples.met is not None:
        raise DecodeError(
            f"decoder {decoder!r} needs every prompt under every mask; here a mask met {samples.met.shape[1]:,} of "
            f"{samples.outputs:,}. Use 'joint', 'proxyspex' or 'linear', or measure with prompts_per_mask='all'."
        )
