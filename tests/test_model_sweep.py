"""Every causal language model of the installed transformers: bound and right, or refused with the reason; never wrong.

``python tests/test_model_sweep.py`` writes docs/explain/models.md. A model is made tiny from its config by shrinking
fields of known names. It is right if zero ablation of a head, an MLP, a neuron and an expert of the first and the last
layer gives the logits of a copy, without any hook, in which weights were set to zero: columns of the attention's output
projection or of the MLP's down projection, one expert's down projection, or, of a whole MLP, all its down projections
with their biases. Which weights these are
is decided here by names and by the config, not by the package.
"""

import copy
import json
import re
import signal
import subprocess
import sys
import textwrap
import warnings
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import nn

PAGE = Path(__file__).resolve().parents[1] / "docs" / "explain" / "models.md"
SECONDS = 40  # of a processor, for one model
TOLERANCE = 1e-3  # of the effect
TOKENS = torch.tensor([[3, 14, 15, 9, 26, 5, 35], [8, 9, 7, 9, 32, 38, 46]])

# fields of configs → what makes them small; the first that a config has, of every line
SMALL = {
    64: "vocab_size "
        "max_position_embeddings n_positions n_ctx max_seq_len vocab_size_per_layer_input max_sequence_length",
    32: "hidden_size d_model n_embd dim embedding_size word_embed_proj_dim emb_dim embed_dim lru_width hidden_dim "
        "linear_num_value_dim conv_dim mamba_d_ssm",
    48: "intermediate_size ffn_dim encoder_ffn_dim decoder_ffn_dim n_inner d_ff ffn_hidden_size dim_ff d_inner "
        "shared_expert_intermediate_size shared_intermediate_size dense_intermediate_size intermediate_size_mlp",
    16: "moe_intermediate_size expert_ffn_hidden_size mamba_d_head mamba_head_dim block_size moe_shared_expert_"
        "intermediate_size kv_channels ssm_state_size mamba_d_state state_size hidden_size_per_layer_input "
        "moe_latent_size time_step_rank mamba_dt_rank dt_rank mamba_headdim window_size index_n_heads_dim "
        "moe_shared_expert_intermediate_size global_head_dim",
    8: "head_dim v_head_dim kv_lora_rank q_lora_rank linear_key_head_dim linear_value_head_dim attention_window_size "
       "sliding_window chunk_size mamba_chunk_size qk_head_dim index_head_dim index_topk swa_head_dim swa_v_head_dim",
    4: "num_attention_heads n_head n_heads num_heads decoder_attention_heads encoder_attention_heads num_experts "
       "num_local_experts n_routed_experts moe_num_experts qk_nope_head_dim qk_rope_head_dim linear_num_value_heads "
       "mamba_n_heads mamba_num_heads attention_heads swa_num_attention_heads moe_num_primary_experts rotary_dim "
       "index_n_heads num_linear_heads n_routed_expert",
    2: "num_hidden_layers n_layer n_layers num_layers decoder_layers encoder_layers num_key_value_heads n_kv_heads "
       "num_experts_per_tok moe_topk moe_k top_k moe_top_k num_experts_per_token linear_num_key_heads "
       "num_decoder_layers swa_num_key_value_heads num_encoder_layers",
    1: "n_group topk_group mamba_n_groups n_groups n_shared_experts num_shared_experts first_k_dense_replace "
       "num_nextn_predict_layers moe_layer_start_index num_global_key_value_heads",
    0: "pad_token_id", 3: "bos_token_id", 5: "eos_token_id",
}  # fmt: skip
REMADE = ("layer_types", "layers_block_type", "mlp_layer_types", "rope_scaling", "head_dim_list")  # from the others
DOWN = (
    r"(down_proj|c_proj|dense_4h_to_h|fc2|fc_out|w2|wo|Wo|output_linear|w_down|w2_proj|linear_fc2|proj_out|lin2|down)"
)
MLP = r"\.(mlp|ffn|feed_forward|block_sparse_moe|moe|mixer|shared_mlp|ff|shared_experts?|feedforward)\."
ATTENTION = (
    r"\.(linear_attn|mamba|self_attn|attn|attention|self_attention|self|mixer|multi_head_attention|temporal_block|"
    r"attn_layer)\."
)
ELSEWHERE = re.compile(
    r"vision|image|img|audio|norm|\.(gate|router)\.|(^|\.)encoder\.layers?\."
)  # other towers, norms, routers
OUT = r"(o_proj|c_proj|out_proj|dense|wo|Wo|out|o|output_proj|proj|linear_out|dense_out)(\.linear)?"


def families():
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


# what is tried where a config does not take that: fields left as they are, others set
VARIANTS = (
    ((), {}),
    (("head_dim",), {}),
    ((), {"num_key_value_heads": 4, "swa_num_key_value_heads": 4, "mamba_d_ssm": 64}),
    (("head_dim",), {"num_key_value_heads": 4, "rotary_dim": 4}),
    ((), {"head_dim": 4, "num_key_value_heads": 4}),
    (REMADE, {}),
    (("num_hidden_layers",), {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}),
    ((), {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}),
    (("head_dim",), {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 1}),
    (("num_hidden_layers", "num_layers", *REMADE), {}),
    (("head_dim", "head_dim_list", "qk_head_dim", *REMADE), {"num_hidden_layers": 4, "num_key_value_heads": 4}),
)


def shrunk(kind, left, others):
    """A config with its sizes made small, those of its parts too."""
    default = kind()
    fields = default.to_dict()
    made = {name: value for value, names in SMALL.items() for name in names.split()
            if isinstance(fields.get(name), int) or name.endswith("_token_id")}  # fmt: skip
    made |= {name: None for name in REMADE if fields.get(name) is not None}
    made = {name: value for name, value in made.items() if name not in left}
    made |= {name: value for name, value in others.items() if name in fields}
    for name in getattr(default, "sub_configs", {}) or {}:
        part = getattr(default, name, None)
        if hasattr(part, "to_dict"):
            made[name] = shrunk(type(part), left, others)
    return kind(**made)


def make(family):
    """The first of the variants that is built and runs; raises what the first one raised where none does."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    first = None
    for left, others in VARIANTS:
        try:
            model = built(shrunk(CONFIG_MAPPING[family], left, others))
            logits(model)
            return model
        except (TimeoutError, MemoryError):
            raise
        except Exception as error:
            first = first or error
    raise first


def built(config):
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    text = config.get_text_config()
    if hasattr(text, "is_decoder"):
        text.is_decoder = True
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    count = sum(p.numel() for p in model.parameters())
    if count > 20_000_000:
        raise MemoryError(f"{count:,} parameters are left")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name and "ln_" not in name and parameter.is_floating_point() and parameter.ndim > 1:
                parameter.normal_(0, 0.2)
    return model


def logits(model):
    with torch.no_grad():
        return model(input_ids=TOKENS, use_cache=False).logits.float()


def in_layer(layer):
    return re.compile(rf"\.{layer}\.")


def last_linear(model, layer, where, names, d_model):
    """The paths of linear maps onto d_model in a part of a layer."""
    found = []
    for path, module in model.named_modules():
        parts = in_layer(layer).split(f".{path}", 1)
        if len(parts) < 2 or ELSEWHERE.search(path):
            continue
        rest = f".{parts[1]}"
        wide = module.weight.shape[0 if isinstance(module, nn.Linear) else 1] if is_map(module) else None
        own = where == MLP and re.fullmatch(r"\.(fc2|fc_out)", rest)
        if wide == d_model and (own or re.search(rf"{where}(.*\.)?{names}$", rest)):
            found.append(path)
    return found


def is_map(module):
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def zeroed(model, change):
    edited = copy.deepcopy(model)
    with torch.no_grad():
        change(edited)
    return logits(edited)


def columns(path, part):
    def change(model):
        module = model.get_submodule(path)
        (module.weight.T if isinstance(module, nn.Linear) else module.weight)[part] = 0

    return change


def whole_mlp(layer):
    """All down projections of a layer's MLP, of experts in one tensor too, with their biases."""
    pattern = re.compile(rf"({MLP}(.*\.)?{DOWN}(\.|_|$)|^\.(fc2|fc_out)\.)")

    def change(model):
        seen = 0
        for path, parameter in model.named_parameters():
            parts = in_layer(layer).split(f".{path}", 1)
            if len(parts) == 2 and not ELSEWHERE.search(path) and pattern.search(f".{parts[1]}"):
                parameter.zero_()
                seen += 1
        if not seen:
            raise LookupError(f"no down projection of layer {layer} is known")

    return change


def one_expert(layer, expert, count):
    """One expert's down projection in the tensors of all of them, with its bias."""
    pattern = re.compile(rf"{MLP}experts\.{DOWN}(_bias)?(\.|$)")

    def change(model):
        seen = 0
        for path, parameter in model.named_parameters():
            parts = in_layer(layer).split(f".{path}", 1)
            if len(parts) == 2 and pattern.search(f".{parts[1]}") and len(parameter) == count:
                parameter[expert] = 0
                seen += 1
        if not seen:
            raise LookupError(f"no down projection of the experts of layer {layer} is known")

    return change


def cases(model, subject):
    """(component, what to do to the weights instead) for the first and the last layer."""
    text = model.config.get_text_config()
    d_model, shape = int(text.hidden_size), subject.shape
    for layer in sorted({0, shape.n_layers - 1}):
        if shape.heads[layer]:
            out = last_linear(model, layer, ATTENTION, OUT, d_model)
            own = getattr(text, "num_attention_heads_per_layer", None)
            count = own[layer] if own else int(text.num_attention_heads)
            for part, field in (("linear_attn", "linear_num_value_heads"), ("mamba", "mamba_n_heads")):
                count = int(getattr(text, field)) if out and f".{part}." in out[-1] else count
            if not out:
                raise LookupError(f"no output projection of layer {layer} is known")
            module = model.get_submodule(out[-1])
            width = module.weight.shape[1 if isinstance(module, nn.Linear) else 0] // count
            yield f"a{layer}.h1", columns(out[-1], slice(width, 2 * width))
        if shape.mlps[layer]:
            yield f"m{layer}", whole_mlp(layer)
        if shape.experts and shape.experts[layer]:
            yield f"m{layer}.e1", one_expert(layer, 1, shape.experts[layer])
        if shape.neurons[layer]:
            down = last_linear(model, layer, MLP, DOWN, d_model)
            if not down:
                raise LookupError(f"no down projection of layer {layer} is known")
            yield f"m{layer}.n3", columns(down[-1], slice(3, 4))


def judge(family):
    """(verdict, why) of one family."""
    import spex_mech as sm

    try:
        model = make(family)
        plain = logits(model)
    except Exception as error:
        return "not built", f"{type(error).__name__}: {error}"
    try:
        subject = sm.bind(model)
    except sm.SpexMechError as error:
        return "refused", str(error)
    checked, unknown = [], []
    shape = subject.shape.describe().partition(" (")[2].rstrip(")")
    mixers = sorted({name for c in subject.certificates for name in c.uncovered})
    shape += f"; not covered: {', '.join(mixers)}" if mixers else ""
    try:
        for name, change in cases(model, subject):
            expected = zeroed(model, change)
            with sm.ablated(subject, ablate=name, replacement="zero"), torch.no_grad():
                found = logits(model)
            effect, off = float((expected - plain).abs().max()), float((found - expected).abs().max())
            if off > TOLERANCE * effect + 2e-5:
                return "wrong", f"{shape}: {name} is off by {off:.2g} of an effect of {effect:.2g}"
            checked.append(name)
    except LookupError as error:
        unknown.append(str(error))
    if unknown or not checked:
        return "unchecked", f"{shape}: {'; '.join(unknown) or 'nothing to check'}"
    return "right", f"{shape}"


def _late(*_):
    raise TimeoutError(f"took longer than {SECONDS} s")


def judge_all(names):
    """In this process, a line of JSON each."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    import transformers.models.llama.modeling_llama  # noqa: F401  what all of them need is no model's time
    from peft import LoraConfig  # noqa: F401

    import spex_mech.ablation.binding  # noqa: F401

    signal.signal(signal.SIGPROF, _late)
    for family in names:
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        late = False
        try:
            verdict, why = judge(family)
        except TimeoutError as error:
            verdict, why, late = "not built", str(error), True
        except Exception as error:
            verdict, why = "error", f"{type(error).__name__}: {error}"
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps([family, verdict, " ".join(why.split())]), flush=True)
        if late:  # it may have been stopped amid an import, which then fails for all that follow
            return


def sweep(names):
    """Every family's verdict, in processes of their own: one that dies takes one family with it."""
    left, found = list(names), {}
    while left:
        command = [sys.executable, __file__, "--only", *left]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        for line in done.stdout.splitlines():
            if line.startswith('["'):
                family, verdict, why = json.loads(line)
                found[family] = (verdict, why)
        rest = [name for name in left if name not in found]
        if rest and done.returncode:
            found[rest[0]] = ("error", f"the process ended ({done.returncode}): {done.stderr[-200:]}")
        left = [name for name in rest if name not in found]
    return found


TITLES = {
    "right": "Bound and right", "refused": "Refused, with the reason", "wrong": "Wrong", "error": "Raw errors",
    "unchecked": "Bound and certified; which weights to compare with is not known to the sweep",
    "not built": "Not built: no tiny model could be made from its config by the sweep's rule",
}  # fmt: skip


def shortened(why):
    """What was seen of the first layer, where a certificate was refused."""
    head, _, layers = why.partition(": - layer" if "self-test" in why else " to its value: - layer")
    told = f"layer{layers.split(' - layer')[0]}" if layers else head
    return told[:160].replace("|", "/")


def page(found):
    import transformers

    counts = Counter(verdict for verdict, _ in found.values())
    rule = (__doc__ or "").split("\n\n")[1].split(". ", 1)[1]
    prose = [
        f"All {len(found)} causal language models of transformers {transformers.__version__} with random weights, "
        "float32. " + " ".join(rule.split()).replace("decided here", "decided in the sweep"),
        "Whether yours is bound: `spex-mech doctor MODEL` prints what was certified of every kind of layer. A model "
        "that is refused can be given as a TransformerLens bridge, or as an object that implements `Subject`.",
        "Forms in which models are held have a suite of their own, values against weight edits without hooks "
        "(`tests/test_contract_suite.py`): float64, bfloat16, float16, packed int8 and int4, LoRA on, off and merged, "
        "compiled, checkpointed, in nnsight, of Llama, Gemma 2, Pythia, BLOOM, Mixtral and Qwen3-Next. On a CPU "
        "bitsandbytes 0.50 (int8, nf4) and torchao 0.18 (int8 weights) are bound, and agree with the plain model of "
        "what their maps give of unit vectors up to 6 %, 3 % and 0.01 % of the largest logit: bitsandbytes rounds what "
        "it reads to int8, or computes in bfloat16. On a GPU neither has been tried.",
        "; ".join(
            f"{title.split(':')[0].split(';')[0].lower()}: {counts[v]}" for v, title in TITLES.items()
        ).capitalize()
        + ".",
    ]
    lines = ["# Which models are bound", ""]
    for paragraph in prose:
        lines += [*textwrap.wrap(paragraph, 140), ""]
    for verdict, title in TITLES.items():
        rows = {family: why for family, (one, why) in found.items() if one == verdict}
        if rows:
            lines += [f"## {title}", "", "| model type | what |", "|---|---|"]
            lines += [f"| {family} | {shortened(why)} |" for family, why in rows.items()] + [""]
    return "\n".join(lines)


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_no_causal_language_model_of_transformers_is_bound_wrongly():
    found = sweep(families())
    assert not {family: told for family, told in found.items() if told[0] in ("wrong", "error")}
    assert sum(verdict == "right" for verdict, _ in found.values()) >= 120


@pytest.mark.parametrize("family", ["llama", "bloom"])
def test_the_sweep_can_see_what_is_wrong(family, monkeypatch):
    assert judge(family)[0] == "right"
    monkeypatch.setattr(sys.modules[__name__], "columns", lambda path, part: lambda model: None)
    assert judge(family)[0] == "wrong"


if __name__ == "__main__":
    if sys.argv[1:2] == ["--only"]:
        judge_all(sys.argv[2:])
    else:
        PAGE.write_text(page(sweep(families())))
