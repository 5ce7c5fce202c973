"""Tiny random models of many families, and adapters with random weights: a fresh adapter would prove nothing."""

import torch
import transformers
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedModel

from deltamem_agents.adapter import DeltaMemAdapter, DeltaMemModel, DeltaMemOutput
from deltamem_agents.config import DeltaMemConfig

VOCABULARY = 96
SIZES: dict[str, object] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
WINDOW = {"head_dim": 8, "sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"]}
GPT = {"n_embd": 32, "n_head": 4, "n_layer": 2}

FAMILIES: dict[str, dict[str, object]] = {
    "Llama": {},
    "Qwen2": {},
    "Qwen3": {"head_dim": 16},
    "SmolLM3": {"no_rope_layers": [1, 0]},
    "Mistral": {"sliding_window": 5},
    "Gemma3Text": WINDOW,
    "Phi3": {},
    "Gemma2": WINDOW,
    "Granite": {},
    "Olmo2": {},
    "Cohere": {"logit_scale": 1.0},
    "Phi": {},
    "OPT": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "Lfm2": {"layer_types": ["conv", "full_attention"]},
}
"""Families that can carry a memory, with what makes their tiny model one of its kind (transformers config options)."""

REFUSED: dict[str, dict[str, object]] = {
    "Qwen3Next": {"head_dim": 8, "layer_types": ["full_attention"] * 2, "num_experts": 2, "num_experts_per_tok": 1},
    "Gemma3nText": {"head_dim": 8, "num_hidden_layers": 4, "num_kv_shared_layers": 2, "vocab_size_per_layer_input": 96},
    "DeepseekV3": {},
    "GPT2": GPT,
    "GPTNeoX": {},
    "Falcon": {},
    "CodeGen": {**GPT, "rotary_dim": 4},
    "Mamba": {},
    "Bart": {
        "d_model": 32,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
    },
}
"""Families that cannot."""

UNHANDED: dict[str, dict[str, object]] = {
    "StableLm": {},
    "Nemotron": {},
    "GPTJ": {**GPT, "rotary_dim": 4},
}
"""Families with plain projections whose decoder layers do not hand keyword arguments on to their attention."""


MECHANISMS: dict[str, dict[str, object]] = {
    "published": {"key_shift": False, "read_gate": "off", "gate_floor": 0.0},
    "gated": {"key_shift": True, "read_gate": "match", "gate_floor": 0.3},
}
"""The memory as it was published, and with all that ours has beside."""


def tiny(family: str = "Llama", *, attention: str | None = None, **options: object) -> PreTrainedModel:
    """A random model of the family, float32, in eval mode, the same every time."""
    extra = {**FAMILIES, **REFUSED, **UNHANDED}[family]
    config = getattr(transformers, f"{family}Config")(**{**SIZES, **extra, **options})
    torch.manual_seed(0)
    kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    model: PreTrainedModel = kind.from_config(config, attn_implementation=attention, dtype=torch.float32).eval()
    return model


def randomised(adapter: DeltaMemAdapter, *, seed: int = 0) -> DeltaMemAdapter:
    """The same adapter with weights that matter: each matrix keeps the size of what goes through it."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapter.parameters():
            fan_in = parameter.shape[-1] if parameter.dim() == 2 else 1
            parameter.normal_(0.0, fan_in**-0.5, generator=generator)
    return adapter


def adapted(family: str = "Llama", *, backbone: PreTrainedModel | None = None, **options: object) -> DeltaMemModel:
    """A tiny model with a randomised adapter on all four projections; `options` are those of `DeltaMemConfig`."""
    backbone = tiny(family) if backbone is None else backbone
    defaults = {"rank": 4, "alpha": 4.0, "num_state_heads": 2, "delta_heads": ("q", "k", "v", "o")}
    config = DeltaMemConfig.parse({**defaults, **options})
    return DeltaMemModel(backbone, randomised(DeltaMemAdapter.initialize(config, backbone))).eval()


def warm(out: DeltaMemOutput) -> dict[str, object]:
    """What the next forward of the same rows goes on from."""
    return {"state": out.state, "past_key_values": out.past_key_values, "carry": out.carry}


def tokens(rows: int, length: int, *, seed: int = 0) -> Tensor:
    """Random token ids without the special ones, long [rows, length]."""
    return torch.randint(3, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))
