"""The vocabularies, once: the words that options, files and tables of the package share. Imports nothing heavy.

What a word means stands where it acts: decoders in `measuring.decode`, links in `walsh.link_function`, metrics in
`tasks.metrics`, replacements in `ablation.replacement`, formats in `formats.interchange`.
"""

from typing import Literal, get_args

DecoderName = Literal["joint", "proxyspex", "spex", "linear", "exact"]
LinkName = Literal["identity", "logistic", "softplus", "spline"]
MetricName = Literal["logit_diff", "log_prob", "prob", "prob_diff", "kl", "loss", "logit"]
ReplacementKind = Literal["mean", "zero", "resample"]
MeanKind = Literal["position", "pooled"]
InteractionKind = Literal["main", "synergy", "redundancy"]
ModelKind = Literal["transformer_lens", "huggingface", "planted"]
FormatName = Literal["json", "hif", "neuronpedia", "mib", "graphml", "gexf", "dot", "node-link", "clique"]
BenchName = Literal["ablation", "decode", "accuracy", "players", "keep", "rows", "workers", "constants"]

DECODER_NAMES: tuple[DecoderName, ...] = get_args(DecoderName)
DECODER_CHOICES = ("auto", *DECODER_NAMES)  # auto: exact for all masks, spex for coded ones, joint for the rest
LINK_NAMES: tuple[LinkName, ...] = get_args(LinkName)
LINK_CHOICES = ("auto", *LINK_NAMES)  # auto: the one that predicts held-out masks clearly better, else identity
SMALLER_IS_BETTER: tuple[MetricName, ...] = ("kl", "loss")
METRIC_NAMES: tuple[MetricName, ...] = get_args(MetricName)
REPLACEMENT_KINDS: tuple[ReplacementKind, ...] = get_args(ReplacementKind)
MEAN_KINDS: tuple[MeanKind, ...] = get_args(MeanKind)
KINDS: tuple[InteractionKind, ...] = get_args(InteractionKind)
MODEL_KINDS: tuple[ModelKind, ...] = get_args(ModelKind)
FORMAT_NAMES: tuple[FormatName, ...] = get_args(FormatName)
BENCH_NAMES: tuple[BenchName, ...] = get_args(BenchName)

HEADS, HEADS_AND_MLPS = "a*.h*", "a*.h*, m*"  # what is ablated by default: the second where the model has MLPs
