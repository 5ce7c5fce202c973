"""A Llama model as a GGUF file: the same weights for llama.cpp, which is fed token ids and needs no tokenizer."""

from pathlib import Path

import gguf
from torch import Tensor
from transformers import PreTrainedModel


def unwritable(model: PreTrainedModel) -> str | None:
    """Why the model cannot be written, in words; None if it can."""
    config = model.config
    if config.model_type != "llama":
        return f"the model is of type {config.model_type}, and only Llama models are written as GGUF here"
    rope = config.rope_parameters["rope_type"]
    if rope != "default":
        return f"the model's positions are scaled ({rope}), and only plain ones are written as GGUF here"
    return None


def write_gguf(model: PreTrainedModel, path: Path, *, int8: bool = False) -> None:
    """Writes the weights in float32, or the matrices in Q8_0: blocks of 32 int8 with one float16 scale each.

    Q8_0 leaves a matrix in float32 whose rows are no multiple of 32 long.

    Args:
        model: one that `unwritable` has nothing to say about.
        path: of the file.
        int8: whether matrices are rounded.

    Raises:
        OSError: the file cannot be written.
    """
    config = model.config
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH.LLAMA])
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("no_vocab")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue  # llama.cpp takes the embedding where there is no output layer
        if ".q_proj." in name or ".k_proj." in name:
            tensor = _paired(tensor, head_dim)
        known = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert known is not None, name
        values = tensor.detach().float().contiguous().numpy()
        if int8 and values.ndim == 2 and values.shape[1] % 32 == 0:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(known, gguf.quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(known, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _paired(projection: Tensor, head_dim: int) -> Tensor:
    """[heads · head_dim, ...]: what turns with its neighbour half a head on is put beside it, as llama.cpp has it."""
    heads = projection.shape[0] // head_dim
    halves = projection.reshape(heads, 2, head_dim // 2, *projection.shape[1:])
    return halves.transpose(1, 2).reshape(projection.shape)
