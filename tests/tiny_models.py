"""Tiny random models of many families, made in memory: no download, random biases, a second each."""

import torch
from torch import nn


def _config(family: str):
    import transformers as hf

    small = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "pad_token_id": 0}
    wide = {"intermediate_size": 48, "max_position_embeddings": 64}
    gqa = {"num_key_value_heads": 2}
    made = {
        "gpt2": lambda: hf.GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=4, n_positions=64, n_inner=48),
        "llama": lambda: hf.LlamaConfig(**small, **wide, **gqa),
        "pythia": lambda: hf.GPTNeoXConfig(**small, **wide),
        "mistral": lambda: hf.MistralConfig(**small, **wide, **gqa),
        "qwen2": lambda: hf.Qwen2Config(**small, **wide, **gqa),
        "qwen3": lambda: hf.Qwen3Config(**small, **wide, **gqa, head_dim=16),
        "gemma2": lambda: hf.Gemma2Config(**small, **wide, **gqa, head_dim=16),
        "gemma3": lambda: hf.Gemma3TextConfig(**small, **wide, **gqa, head_dim=16),
        "phi3": lambda: hf.Phi3Config(**small, **wide, **gqa, eos_token_id=1, bos_token_id=2),
        "opt": lambda: hf.OPTConfig(
            vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, ffn_dim=48,
            max_position_embeddings=64, word_embed_proj_dim=32, pad_token_id=0,
        ),
        "bloom": lambda: hf.BloomConfig(vocab_size=50, hidden_size=32, n_layer=2, n_head=4),
        "mpt": lambda: hf.MptConfig(vocab_size=50, d_model=32, n_layers=2, n_heads=4, max_seq_len=64),
        "glm4": lambda: hf.Glm4Config(**small, **wide, **gqa, head_dim=8),
        "gpt1": lambda: hf.OpenAIGPTConfig(vocab_size=50, n_embd=32, n_layer=2, n_head=4, n_positions=64),
        "laguna": lambda: hf.LagunaConfig(
            **small, **wide, **gqa, head_dim=8, num_attention_heads_per_layer=[4, 8], num_experts=4,
            num_experts_per_tok=2, moe_intermediate_size=16,
        ),
        "granitemoeshared": lambda: hf.GraniteMoeSharedConfig(
            **small, **wide, **gqa, num_local_experts=4, num_experts_per_tok=2, shared_intermediate_size=16
        ),
        "qwen3next": lambda: hf.Qwen3NextConfig(
            **small, **wide, **gqa, head_dim=8, num_experts=4, num_experts_per_tok=2, linear_num_value_heads=4,
            linear_num_key_heads=2, linear_key_head_dim=8, linear_value_head_dim=8, moe_intermediate_size=16,
            shared_expert_intermediate_size=16, layer_types=["linear_attention", "full_attention"],
        ),
        "jamba": lambda: hf.JambaConfig(
            **small, **wide, **gqa, attn_layer_period=2, attn_layer_offset=1, num_experts=4, expert_layer_period=2,
            expert_layer_offset=1, mamba_d_state=8, mamba_dt_rank=8, use_mamba_kernels=False,
        ),
        "bamba": lambda: hf.BambaConfig(
            **small, **wide, **gqa, attn_layer_indices=[1], mamba_n_heads=4, mamba_d_head=16, mamba_n_groups=1,
            mamba_d_state=8, mamba_chunk_size=8, attn_rotary_emb=8, use_mamba_kernels=False,
        ),
        "mixtral": lambda: hf.MixtralConfig(**small, **wide, **gqa, num_local_experts=4, num_experts_per_tok=2),
        "olmoe": lambda: hf.OlmoeConfig(**small, **wide, **gqa, num_experts=4, num_experts_per_tok=2),
        "qwen2moe": lambda: hf.Qwen2MoeConfig(
            **small, **wide, **gqa, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16,
            shared_expert_intermediate_size=16,
        ),
        "qwen3moe": lambda: hf.Qwen3MoeConfig(
            **small, **wide, **gqa, head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16
        ),
        "deepseekv3": lambda: hf.DeepseekV3Config(
            **small, **wide, num_key_value_heads=4, n_routed_experts=4, num_experts_per_tok=2, n_shared_experts=1,
            moe_intermediate_size=16, first_k_dense_replace=0, n_group=1, topk_group=1, q_lora_rank=8, kv_lora_rank=8,
            qk_nope_head_dim=4, qk_rope_head_dim=4, v_head_dim=8,
        ),
        "gptoss": lambda: hf.GptOssConfig(
            **small, **wide, **gqa, head_dim=8, num_local_experts=4, num_experts_per_tok=2
        ),
        "llama4": lambda: hf.Llama4TextConfig(
            **small, **wide, **gqa, head_dim=8, num_local_experts=4, num_experts_per_tok=2, intermediate_size_mlp=48
        ),
        "granitemoe": lambda: hf.GraniteMoeConfig(**small, **wide, **gqa, num_local_experts=4, num_experts_per_tok=2),
    }  # fmt: skip
    return made[family]()


def tiny(family: str, seed: int = 0) -> nn.Module:
    """A two-layer model of the family with weights large enough that its components interact."""
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(_config(family)).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "norm" not in name and "ln_" not in name:
                    parameter.normal_(0, 0.2)
    return model


def bridge_of(model: nn.Module):
    """A TransformerBridge around a copy of the model."""
    import copy

    from transformer_lens.model_bridge.sources import build_bridge_from_module

    inner = copy.deepcopy(model)
    return build_bridge_from_module(inner, architecture=type(inner).__name__, hf_config=inner.config, tokenizer=None)


def tokens_task(n_prompts: int = 3, length: int = 7, seed: int = 0, ragged: bool = False, **options):
    """Random prompts over a vocabulary of 50, with answers, distractors and corrupt prompts."""
    from spex_mech.tasks.task import Task

    generator = torch.Generator().manual_seed(seed)

    def rows() -> list[list[int]]:
        lengths = [length - (i % 2 if ragged else 0) for i in range(n_prompts)]
        return [torch.randint(1, 50, (n,), generator=generator).tolist() for n in lengths]

    answers = list(range(n_prompts))
    distractors = [[10, 11 + i] if i % 2 else [20] for i in range(n_prompts)]
    return Task(rows(), answers, distractors, **{"corrupt": rows(), "reference": rows(), **options})
