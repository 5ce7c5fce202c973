"""A tiny chat model: bytes and a few merges for tokens, ChatML with a default system prompt, random weights."""

from functools import cache

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from deltamem_agents.adapter import DeltaMemModel
from tests.builders import adapted, tiny

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["t h", "th e", "Ġ t", "u s", "us e", "use r", "a s", "i s", "a n", "Ġ a", "Ã ©", "e r"]
DEFAULT_SYSTEM = "Be good."
CHATML = (
    "{% for m in messages %}"
    "{% if loop.first and m['role'] != 'system' %}<|im_start|>system\n" + DEFAULT_SYSTEM + "<|im_end|>\n{% endif %}"
    "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
VOCABULARY = len(SPECIAL) + 256 + len(MERGES)


@cache
def byte_tokenizer() -> PreTrainedTokenizerBase:
    letters = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), *(merge.replace(" ", "") for merge in MERGES)]
    pairs = [(first, second) for first, second in (merge.split(" ") for merge in MERGES)]
    bytes_and_merges = Tokenizer(models.BPE({token: number for number, token in enumerate(letters)}, pairs))
    bytes_and_merges.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bytes_and_merges.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=bytes_and_merges,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHATML,
    )


def chat_backbone(family: str = "Llama", *, context: int = 2048, **options: object) -> PreTrainedModel:
    """A tiny random model with a vocabulary for `byte_tokenizer`, lively enough for replies that differ."""
    sizes = {"vocab_size": VOCABULARY, "max_position_embeddings": context, "eos_token_id": 2, "pad_token_id": 0}
    model = tiny(family, **{"initializer_range": 0.2, "tie_word_embeddings": False, **sizes, **options})
    tokens = [byte_tokenizer().decode([number]) for number in range(VOCABULARY)]
    unprintable = [n for n, text in enumerate(tokens) if text not in SPECIAL[2:] and not text.isprintable()]
    unprintable += [n for n, text in enumerate(tokens) if text in (*SPECIAL[:2], "\ufffd")]
    with torch.no_grad():
        model.get_output_embeddings().weight[unprintable] = 0.0  # half a character would be lost in the reply's text
    return model


def chat_model(family: str = "Llama", *, context: int = 2048, **adapter: object) -> DeltaMemModel:
    """`chat_backbone` with a randomised adapter; `adapter` are options of `DeltaMemConfig`."""
    return adapted(backbone=chat_backbone(family, context=context), **adapter)
