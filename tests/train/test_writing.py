import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from deltamem_agents.adapter import DeltaMemAdapter, DeltaMemModel
from deltamem_agents.backbone.spans import sentence_spans
from deltamem_agents.backbone.template import ChatTemplate
from deltamem_agents.config import DeltaMemConfig
from deltamem_agents.errors import TrainingError
from deltamem_agents.messages import Message
from deltamem_agents.state import MemoryState
from deltamem_agents.train.answers import answer_logits, answer_rows, prose_rows
from deltamem_agents.train.episode import Episode, Exchange
from deltamem_agents.train.features import WASTE, Features, buckets, message_tokens
from deltamem_agents.train.losses import gate_mean
from deltamem_agents.train.writing import write_memories
from tests.builders import randomised
from tests.train.conftest import SMALL

TALK = [
    [
        Message(role="user", content="My name is Ann."),
        Message(role="assistant", content="Hi."),
        Message(role="user", content="I row. I also ski."),
    ],
    [Message(role="user", content="I live in a small town by the sea.")],
]


def model(backbone: PreTrainedModel, config: DeltaMemConfig = SMALL) -> DeltaMemModel:
    return DeltaMemModel(backbone, randomised(DeltaMemAdapter.initialize(config, backbone)))


@pytest.mark.parametrize("granularity", ["token", "message_mean", "sentence_mean"])
def test_written_memories_are_those_of_one_forward_with_reads_off(
    backbone: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, granularity: str
) -> None:
    full = model(backbone, DeltaMemConfig.parse({**dict(SMALL), "write_granularity": granularity}))
    with torch.no_grad():
        for layer in full.adapter.layers.values():
            for delta in layer.delta.values():
                delta.zero_()  # reads correct nothing: writing with reads on and off is the same
    template = ChatTemplate(tokenizer)
    memories = write_memories(Features(full), template, TALK, together=True).state
    for row, messages in enumerate(TALK):
        ids: list[int] = []
        write: list[bool] = []
        spans: list[int] = []
        for segment in template.render(messages):
            on = segment.message is not None and messages[segment.message].role == "user"
            pieces = [str(tokenizer.decode([i])) for i in segment.ids]
            parts = sentence_spans(pieces) if granularity == "sentence_mean" else (0,) * len(pieces)
            start = max(spans, default=-1) + 1
            ids += segment.ids
            write += [on] * len(pieces)
            spans += [start + part if on else -1 for part in parts]
        with torch.no_grad():
            kinds = {} if granularity == "token" else {"spans": torch.tensor([spans])}
            expected = full(torch.tensor([ids]), write=torch.tensor([write]), **kinds).state
        torch.testing.assert_close(memories.rows(row).tensor, expected.tensor, rtol=1e-4, atol=1e-5)
    assert memories.tensor.abs().sum() > 0


def test_messages_written_apart_do_not_see_each_other(
    backbone: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    features, template = Features(model(backbone)), ChatTemplate(tokenizer)
    replied = write_memories(features, template, [TALK[0]], together=False).state
    unreplied = write_memories(features, template, [[TALK[0][0], TALK[0][2]]], together=False).state
    torch.testing.assert_close(replied.tensor, unreplied.tensor)
    together = write_memories(features, template, [TALK[0]], together=True).state
    assert not torch.allclose(replied.tensor, together.tensor)


def test_a_row_is_the_same_alone_and_in_a_batch_and_from_the_cache(
    backbone: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    full, template = model(backbone), ChatTemplate(tokenizer)
    plain, cached = Features(full), Features(full, budget=10_000_000)
    both = write_memories(plain, template, TALK, together=False)
    for row, messages in enumerate(TALK):
        alone = write_memories(plain, template, [messages], together=False).state
        torch.testing.assert_close(alone.tensor, both.state.rows(row).tensor, rtol=1e-4, atol=1e-5)
    first = write_memories(cached, template, TALK, together=False).state
    again = write_memories(cached, template, TALK, together=False).state
    assert torch.equal(first.tensor, again.tensor)
    torch.testing.assert_close(first.tensor, both.state.tensor, rtol=1e-2, atol=1e-2)


def test_the_cache_keeps_to_its_budget_and_drops_the_oldest(backbone: PreTrainedModel) -> None:
    features = Features(model(backbone), budget=2 * 4 * 2 * 32 * 2)  # two rows of 4 tokens, 2 layers, 32 wide, 2 bytes
    rows = [tuple(range(start, start + 4)) for start in (10, 20, 30)]
    features.of(rows[:2])
    features.of([rows[0]])
    features.of([rows[2]])
    assert list(features._kept) == [rows[0], rows[2]]
    assert features.bytes == features.budget


def test_gates_are_means_of_beta_and_talk_is_told_apart(
    backbone: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    full = DeltaMemModel(backbone, DeltaMemAdapter.initialize(SMALL, backbone))  # a fresh β is σ(−2)
    written = write_memories(Features(full), ChatTemplate(tokenizer), TALK, together=False, talk=[[2], []])
    assert torch.allclose(written.beta[written.on], torch.sigmoid(torch.tensor(-2.0)))
    assert not written.beta[~written.on].any()
    last = ChatTemplate(tokenizer).render([TALK[0][2]])[-1]
    assert written.talk.sum() == len(last.ids)
    assert not written.beta.requires_grad
    on_tape = write_memories(Features(full), ChatTemplate(tokenizer), TALK, together=False, gate_gradients=True)
    assert on_tape.beta.requires_grad


@pytest.mark.parametrize("together", [True, False])
def test_values_told_are_found_as_words_outside_the_messages_that_tell_nothing(
    backbone: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, together: bool
) -> None:
    told = "I'm ANN, no Annabel: Ann. I live in São Tomé."
    said = [Message(role="user", content=text) for text in (told, "Ann was late.", "Nothing here.")]
    template, values = ChatTemplate(tokenizer), [["Bob"], ["Ann", "Anne"], ["São Tomé"]]
    written = write_memories(
        Features(model(backbone)), template, [said, TALK[0]], together=together, talk=[[1], []], told=[values, []]
    )
    rows = [s for s in template.render(said) if s.message is not None]
    ids = torch.tensor([i for row in rows for i in row.ids])
    facts = written.told[0][written.on[0]]
    assert [tokenizer.decode(ids[facts == n]) for n in (1, 2, 3)] == ["", "ANNAnn", "São Tomé"]
    assert not written.told[1].any()


def test_a_told_value_costs_what_keeps_the_gates_of_a_layer_shut(
    backbone: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    full = model(backbone)
    features, template = Features(full), ChatTemplate(tokenizer)
    written = write_memories(features, template, [TALK[0]], together=False, told=[[["row"]]], gate_gradients=True)
    x = features.of([tuple(template.render([TALK[0][2]])[-1].ids)])[0]
    expected = torch.stack([
        -(layer.write_gate(x[None, :, n])[0].mean(-1) + 1e-3).log()
        for n, layer in enumerate(full.adapter.layers.values())
    ]).mean(0)
    torch.testing.assert_close(written.missed[0][written.on[0]][-len(expected) :], expected)
    gate_mean(written.missed, written.told > 0).backward()
    grad = next(iter(full.adapter.layers.values())).gate_bias.grad
    assert grad is not None
    assert (grad[: full.adapter.config.gates] < 0).all(), "a step along it opens every gate"


@pytest.mark.parametrize("shift", [True, False])
def test_keys_are_those_that_a_token_is_written_under(
    backbone: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, shift: bool
) -> None:
    full = model(backbone, SMALL.model_copy(update={"key_shift": shift}))
    (x,) = Features(full).of([message_tokens(ChatTemplate(tokenizer), TALK[0][0])])
    for number, layer in enumerate(full.adapter.layers.values()):
        keys = layer.keys(x[:, number], torch.cat([torch.zeros_like(x[:1, number]), x[:-1, number]]))
        for token in range(len(x)):
            alone = (torch.arange(len(x)) == token)[None]
            state = layer(x[None, :, number], full.zero_state(1).tensor[:, number], write=alone).state[0]
            read = torch.einsum("nij,nj->ni", state, keys[token])
            torch.testing.assert_close(torch.einsum("ni,nj->nij", read, keys[token]), state)
            assert state.abs().sum() > 0


def test_keys_of_facts_told_are_compared_as_their_conversation_writes_them(
    backbone: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    full = model(backbone)
    features, template = Features(full), ChatTemplate(tokenizer)
    told = [[["Ann"], ["row", "ski"]], []]
    written = write_memories(features, template, TALK, together=False, told=told, gate_gradients=True)
    x = torch.cat(features.of([message_tokens(template, TALK[0][n]) for n in (0, 2)]))
    facts = written.told[0][: len(x)]
    expected = []
    for number, layer in enumerate(full.adapter.layers.values()):
        keys = layer.keys(x[:, number], torch.cat([x[:1, number] * 0, x[:-1, number]]))
        cosine = torch.einsum("tnr,snr->tsn", keys, keys)
        expected.append(cosine[facts == 1][:, facts == 2].square().mean())
    torch.testing.assert_close(written.overlap, torch.stack(expected).mean())
    assert written.overlap.requires_grad


def test_answer_rows_end_together_and_count_only_the_answer(tokenizer: PreTrainedTokenizerBase) -> None:
    prompts = [[Message(role="user", content="What is my name?")], [Message(role="user", content="Hi")]]
    answers = ["Ann.", "I do not know that one."]
    template = ChatTemplate(tokenizer)
    rows = answer_rows(template, prompts, answers, roles=("user",))
    for row, answer in enumerate(answers):
        target = rows.targets[row]
        counted = target[target != -100]
        assert tokenizer.decode(counted) == answer + "<|im_end|>"
        assert torch.equal(rows.ids[row, rows.at[row] + 1][target != -100], counted)  # position t predicts token t + 1
        written = tokenizer.decode(rows.ids[row][rows.write[row]])
        assert written == f"<|im_start|>user\n{prompts[row][0].content}<|im_end|>\n"
        assert not rows.write[row][rows.mask[row] == 0].any()
    bare = answer_rows(template, prompts, answers, roles=("user",), bare=True)
    assert str(tokenizer.decode(bare.ids[1])).startswith("<|im_start|>user\nHi")
    assert bare.ids.shape[1] < rows.ids.shape[1]


def test_replies_on_the_way_count_like_the_answer(tokenizer: PreTrainedTokenizerBase) -> None:
    episode = Episode(
        earlier=(Message(role="user", content="I am Ann and live in Rome."),),
        window=(Message(role="user", content="Hi"), Message(role="assistant", content="Hello!")),
        exchanges=(Exchange(question="Where do I live?", answer="You live in Rome."),),
        question="Who am I?",
        answer="You are Ann.",
        values=("Ann",),
    )
    short = Episode(earlier=episode.earlier, question="Who am I?", answer="Ann.")
    rows = answer_rows(
        ChatTemplate(tokenizer),
        [episode.prompt, short.prompt],
        [episode.answer, short.answer],
        roles=(),
        learnt=[episode.learnt, short.learnt],
    )
    counted = [tokenizer.decode(t[t != -100]) for t in rows.targets]
    assert counted == ["You live in Rome.<|im_end|>You are Ann.<|im_end|>", "Ann.<|im_end|>"]


def test_prose_counts_from_its_second_token_and_is_not_written(tokenizer: PreTrainedTokenizerBase) -> None:
    texts = ["Rivers bend.", "Bread rises because yeast gives off gas."]
    rows = prose_rows(ChatTemplate(tokenizer), texts)
    for row, text in enumerate(texts):
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert rows.ids[row][rows.mask[row] == 1].tolist() == ids
        counted = rows.targets[row] != -100
        assert rows.targets[row][counted].tolist() == ids[1:]
        assert rows.ids[row, rows.at[row] + 1][counted].tolist() == ids[1:]
    assert not rows.write.any()


def test_only_the_predictions_that_count_are_computed(
    backbone: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    full = model(backbone)
    prompts = [[Message(role="user", content="Hi")], [Message(role="user", content="What is my name?")]]
    rows = answer_rows(ChatTemplate(tokenizer), prompts, ["Yes, indeed", "No"], roles=())
    found = answer_logits(full, rows, full.zero_state(2))
    everything = full(rows.ids, rows.mask, write=False).logits
    assert everything.shape[1] > found.shape[1]
    for row, on in enumerate(rows.targets != -100):
        torch.testing.assert_close(found[row][on], everything[row, rows.at[row][on]].float())


def test_rows_in_groups_of_one_length_answer_as_rows_together(
    backbone: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    full = model(backbone)
    prompts = [[Message(role="user", content="Hi, who are you? " * n)] for n in (9, 1, 8, 2, 1, 30)]
    rows = answer_rows(ChatTemplate(tokenizer), prompts, ["Yes", "No", "Ann, I am", "", "Bob", "I"], roles=("user",))
    assert 1 < len(rows.alike()) < len(prompts)
    generator = torch.Generator().manual_seed(0)
    state = MemoryState(torch.randn(full.zero_state(6).tensor.shape, generator=generator))
    together = full(rows.ids, rows.mask, state=state, write=rows.write, use_cache=False).logits
    found = answer_logits(full, rows, state)
    for row, on in enumerate(rows.targets != -100):
        torch.testing.assert_close(found[row][on], together[row, rows.at[row][on]].float(), rtol=1e-4, atol=1e-4)


def test_no_state_is_an_empty_memory(backbone: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    full = model(backbone)
    prompts = [[Message(role="user", content="Hi")], [Message(role="user", content="What is my name?")]]
    rows = answer_rows(ChatTemplate(tokenizer), prompts, ["Yes", "No"], roles=())
    torch.testing.assert_close(answer_logits(full, rows, None), answer_logits(full, rows, full.zero_state(2)))


def test_a_prompt_longer_than_the_context_is_refused(
    backbone: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    full = model(backbone)
    rows = answer_rows(ChatTemplate(tokenizer), [[Message(role="user", content="x" * 3000)]], ["No"], roles=())
    with pytest.raises(TrainingError, match="the backbone attends to 2048"):
        answer_logits(full, rows, None)


@given(st.lists(st.integers(1, 3000), max_size=60))
def test_buckets_hold_every_row_once_with_little_padding(lengths: list[int]) -> None:
    groups = buckets(lengths)
    assert sorted(i for g in groups for i in g) == list(range(len(lengths)))
    for group in groups:
        real = [lengths[i] for i in group]
        assert max(real) * len(real) <= WASTE * sum(real)
