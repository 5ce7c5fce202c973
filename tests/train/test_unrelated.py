"""Replies of the plain backbone: to prompts of several kinds, its own among them, the same for the same seed."""

from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from deltamem_agents import DeltaMemAdapter
from deltamem_agents.adapter import DeltaMemModel
from deltamem_agents.backbone.template import ChatTemplate
from deltamem_agents.train import Values
from deltamem_agents.train.data import TrainingData
from deltamem_agents.train.facts import holds_held_out_word
from deltamem_agents.train.unrelated import general_questions, own_prompts, plain_prose, plain_replies
from tests.train.conftest import SMALL


def test_a_third_are_general_questions_and_none_is_answered_by_nothing(
    backbone: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    model = DeltaMemModel(backbone, DeltaMemAdapter.initialize(SMALL, backbone))
    template, data = ChatTemplate(tokenizer), TrainingData.load((), Values(["harbor", "velvet"]), count=len)
    found = plain_replies(model, template, data, seed=1, count=60, length=4, cache_dir=tmp_path)
    prompts = [u.prompt[0].content for u in found if len(u.prompt) == 1]
    assert len(set(prompts)) == len(prompts) > 30
    assert 0.25 < sum(p in general_questions("train") for p in prompts) / len(prompts) < 0.45
    assert all(u.reply.strip() for u in found)
    assert not [u for u in found if holds_held_out_word(u.reply)]
    assert found == plain_replies(model, template, data, seed=1, count=60, length=4, cache_dir=tmp_path / "new")


def test_some_come_in_a_chat_after_questions_about_the_user(
    backbone: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    model = DeltaMemModel(backbone, DeltaMemAdapter.initialize(SMALL, backbone))
    template, data = ChatTemplate(tokenizer), TrainingData.load((), Values(["harbor", "velvet"]), count=len)
    found = plain_replies(model, template, data, seed=1, count=60, length=4, cache_dir=tmp_path)
    alone = {u.prompt[0].content: u.reply for u in found if len(u.prompt) == 1}
    chats = [u for u in found if len(u.prompt) > 1]
    assert len(chats) > 10
    for chat in chats:
        assert [m.role for m in chat.prompt] == ["user", "assistant"] * (len(chat.prompt) // 2) + ["user"]
        assert chat.prompt[-1].content in alone
    assert [u for u in chats if alone[u.prompt[-1].content] != u.reply], "replies are those of the chat"


def test_some_prompts_have_prose_before_them(
    backbone: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    model = DeltaMemModel(backbone, DeltaMemAdapter.initialize(SMALL, backbone))
    template, data = ChatTemplate(tokenizer), TrainingData.load((), Values(["harbor", "velvet"]), count=len)
    prose = ["A river bends.", "Bread rises."]
    found = plain_replies(model, template, data, prose=prose, seed=1, count=60, length=4, cache_dir=tmp_path)
    prompts = {u.prompt[0].content for u in found if len(u.prompt) == 1}
    for passage in prose:
        (long,) = [text for text in prompts if text.startswith(f"{passage}\n\n")]
        assert long.removeprefix(f"{passage}\n\n") in prompts


def test_general_questions_are_many_and_those_of_the_test_are_others() -> None:
    train, test = (general_questions(split) for split in ("train", "test"))  # type: ignore[arg-type]
    assert len(set(train)) >= 300
    assert len(set(test)) >= 100
    assert not set(train) & set(test)
    assert not [text for text in train if holds_held_out_word(text)]


def test_prose_follows_the_seed_is_long_enough_and_holds_nothing_kept_for_testing(
    backbone: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    model = DeltaMemModel(backbone, DeltaMemAdapter.initialize(SMALL, backbone))
    template = ChatTemplate(tokenizer)
    some = plain_prose(model, template, count=30, seed=1, length=24, cache_dir=tmp_path)
    assert len(some) > 10
    assert some == plain_prose(model, template, count=30, seed=1, length=24, cache_dir=tmp_path / "new")
    assert some != plain_prose(model, template, count=30, seed=2, length=24, cache_dir=tmp_path)
    assert not [text for text in some if holds_held_out_word(text) or len(tokenizer.tokenize(text)) < 2]


def test_own_prompts_follow_the_seed_and_hold_nothing_kept_for_testing(
    backbone: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    model = DeltaMemModel(backbone, DeltaMemAdapter.initialize(SMALL, backbone))
    template = ChatTemplate(tokenizer)
    some = own_prompts(model, template, count=40, seed=1, length=8, cache_dir=tmp_path)
    assert 20 < len(some) <= 40
    assert some == own_prompts(model, template, count=40, seed=1, length=8, cache_dir=tmp_path / "new")
    assert some != own_prompts(model, template, count=40, seed=2, length=8, cache_dir=tmp_path)
    assert not [text for text in some if holds_held_out_word(text) or not text.strip()]
