"""Replies of the plain backbone: to prompts of several kinds, its own among them, the same for the same seed."""

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from deltamem_agents import DeltaMemAdapter
from deltamem_agents.adapter import DeltaMemModel
from deltamem_agents.backbone.template import ChatTemplate
from deltamem_agents.train import Values
from deltamem_agents.train.data import TrainingData
from deltamem_agents.train.facts import holds_held_out_word
from deltamem_agents.train.talk import SMALL_TALK
from deltamem_agents.train.unrelated import own_prompts, plain_prose, plain_replies
from tests.train.conftest import SMALL


def test_prompts_are_of_several_kinds_and_none_is_answered_by_nothing(
    backbone: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    model = DeltaMemModel(backbone, DeltaMemAdapter.initialize(SMALL, backbone))
    template, data = ChatTemplate(tokenizer), TrainingData.load((), Values(["harbor", "velvet"]), count=len)
    found = plain_replies(model, template, data, seed=1, each=5, made_up=6, length=4)
    prompts = [u.prompt.content for u in found if u.prompt is not None]
    assert len(set(prompts)) == len(prompts) > len(SMALL_TALK) // 2
    assert all(u.reply.strip() for u in found)
    assert not [u for u in found if holds_held_out_word(u.reply)]
    assert found == plain_replies(model, template, data, seed=1, each=5, made_up=6, length=4)


def test_some_prompts_have_prose_before_them(backbone: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    model = DeltaMemModel(backbone, DeltaMemAdapter.initialize(SMALL, backbone))
    template, data = ChatTemplate(tokenizer), TrainingData.load((), Values(["harbor", "velvet"]), count=len)
    prose = ["A river bends.", "Bread rises."]
    found = plain_replies(model, template, data, prose=prose, seed=1, each=2, made_up=20, length=4)
    prompts = {u.prompt.content for u in found if u.prompt is not None}
    for passage in prose:
        (long,) = [text for text in prompts if text.startswith(f"{passage}\n\n")]
        assert long.removeprefix(f"{passage}\n\n") in prompts


def test_prose_follows_the_seed_is_long_enough_and_holds_nothing_kept_for_testing(
    backbone: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    model = DeltaMemModel(backbone, DeltaMemAdapter.initialize(SMALL, backbone))
    template = ChatTemplate(tokenizer)
    some = plain_prose(model, template, count=30, seed=1, length=24)
    assert len(some) > 10
    assert some == plain_prose(model, template, count=30, seed=1, length=24)
    assert some != plain_prose(model, template, count=30, seed=2, length=24)
    assert not [text for text in some if holds_held_out_word(text) or len(tokenizer.tokenize(text)) < 2]


def test_own_prompts_follow_the_seed_and_hold_nothing_kept_for_testing(
    backbone: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    model = DeltaMemModel(backbone, DeltaMemAdapter.initialize(SMALL, backbone))
    template = ChatTemplate(tokenizer)
    some = own_prompts(model, template, count=40, seed=1, length=8)
    assert 20 < len(some) <= 40
    assert some == own_prompts(model, template, count=40, seed=1, length=8)
    assert some != own_prompts(model, template, count=40, seed=2, length=8)
    assert not [text for text in some if holds_held_out_word(text) or not text.strip()]
