"""The KV cache goes by the name that a backbone has for it, as transformers renames it from 5.24 on."""

from types import SimpleNamespace
from typing import Any

import torch
from transformers import Cache, LlamaForCausalLM

from deltamem_agents.adapter import DeltaMemModel
from deltamem_agents.adapter.kv_cache import cache_name
from tests.builders import adapted, tiny, tokens, warm


class Renamed(LlamaForCausalLM):
    """Knows the new name only, whatever transformers is installed."""

    def forward(self, input_ids: torch.Tensor, cache: Cache | None = None, **more: Any) -> Any:  # type: ignore[override]
        assert "past_key_values" not in more
        out = super().forward(input_ids, **{INSTALLED: cache}, **more)
        return SimpleNamespace(logits=out.logits, cache=getattr(out, INSTALLED))


INSTALLED = cache_name(tiny())


@torch.no_grad()
def test_a_backbone_that_calls_its_cache_by_the_new_name() -> None:
    plain, ids = adapted(), tokens(2, 6)
    backbone = tiny()
    backbone.__class__ = Renamed
    assert cache_name(backbone) == "cache"
    renamed = DeltaMemModel(backbone, plain.adapter)
    expected, found = plain(ids[:, :4]), renamed(ids[:, :4])
    for at in (4, 5):
        expected, found = plain(ids[:, at : at + 1], **warm(expected)), renamed(ids[:, at : at + 1], **warm(found))
        assert torch.equal(found.logits, expected.logits)
        assert torch.equal(found.state.tensor, expected.state.tensor)
    assert found.past_key_values is not None
    assert found.past_key_values.get_seq_length() == 6
