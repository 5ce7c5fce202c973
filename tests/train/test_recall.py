import json
import math
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from deltamem_agents.adapter import DeltaMemAdapter, DeltaMemModel
from deltamem_agents.backbone.template import ChatTemplate
from deltamem_agents.config import DeltaMemConfig
from deltamem_agents.errors import ConfigError, TrainingError
from deltamem_agents.messages import Message
from deltamem_agents.train.batches import answer_rows, write_memories
from deltamem_agents.train.recall import RecallTrainer, Recipe, Stage
from tests.builders import randomised

SMALL = DeltaMemConfig(rank=4, num_state_heads=2)
TALK = [
    [
        Message(role="user", content="My name is Ann."),
        Message(role="assistant", content="Hi."),
        Message(role="user", content="I row."),
    ],
    [Message(role="user", content="I live in a small town by the sea.")],
]


def recipe(**changes: object) -> Recipe:
    stages = (Stage(until=1, facts=(1,)), Stage(until=4, facts=(1, 2), open_share=0.5, other_talk=1, unrelated_every=1))
    sizes = {"batch": 3, "unrelated": 2, "stages": stages, "adapter": SMALL}
    return Recipe.model_validate({**sizes, "warm_up": 2, "evaluate_every": 2, **changes})


def test_written_memories_are_those_of_one_forward_with_reads_off(
    backbone: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    adapter = randomised(DeltaMemAdapter.initialize(SMALL, backbone))
    with torch.no_grad():
        for layer in adapter.layers.values():
            for delta in layer.delta.values():
                delta.zero_()  # reads correct nothing: writing with reads on and off is the same
    model, template = DeltaMemModel(backbone, adapter), ChatTemplate(tokenizer)
    memories = write_memories(model, template, TALK, together=True)
    for row, messages in enumerate(TALK):
        segments = template.render(messages)
        ids = [i for s in segments for i in s.ids]
        write = [s.message is not None and messages[s.message].role == "user" for s in segments for _ in s.ids]
        with torch.no_grad():
            expected = model(torch.tensor([ids]), write=torch.tensor([write])).state
        torch.testing.assert_close(memories.rows(row).tensor, expected.tensor, rtol=1e-4, atol=1e-5)


def test_messages_written_apart_do_not_see_each_other(
    backbone: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    model = DeltaMemModel(backbone, randomised(DeltaMemAdapter.initialize(SMALL, backbone)))
    template = ChatTemplate(tokenizer)
    replied = write_memories(model, template, [TALK[0]], together=False)
    unreplied = write_memories(model, template, [[TALK[0][0], TALK[0][2]]], together=False)
    torch.testing.assert_close(replied.tensor, unreplied.tensor)
    assert not torch.allclose(replied.tensor, write_memories(model, template, [TALK[0]], together=True).tensor)


def test_answer_rows_end_together_and_count_only_the_answer(tokenizer: PreTrainedTokenizerBase) -> None:
    prompts = [[Message(role="user", content="What is my name?")], [Message(role="user", content="Hi")]]
    rows = answer_rows(ChatTemplate(tokenizer), prompts, ["Ann.", "I do not know that one."], roles=("user",))
    positions = rows.targets.shape[1]
    for row, answer in enumerate(["Ann.", "I do not know that one."]):
        target = rows.targets[row]
        counted = target[target != -100]
        assert tokenizer.decode(counted) == answer + "<|im_end|>"
        following = rows.ids[row, -positions + 1 :]  # position t predicts token t + 1
        assert torch.equal(following[target[:-1] != -100], counted)
        written = tokenizer.decode(rows.ids[row][rows.write[row]])
        assert written == f"<|im_start|>user\n{prompts[row][0].content}<|im_end|>\n"
        assert not rows.write[row][rows.mask[row] == 0].any()


def test_a_step_reaches_every_weight_and_leaves_the_backbone_alone(
    backbone: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    before = {name: p.clone() for name, p in backbone.named_parameters()}
    trainer = RecallTrainer(recipe(), backbone, tokenizer, tmp_path)
    for _ in range(2):
        losses = trainer._train_step()
        trainer.step += 1
    assert losses["unrelated_loss"] >= 0
    assert math.isfinite(losses["recall_loss"])
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in trainer.model.adapter.parameters())
    assert all(torch.equal(p, before[name]) for name, p in backbone.named_parameters())


def test_a_run_that_was_stopped_goes_on_exactly(
    backbone: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    for folder, stops in (("whole", (4,)), ("parts", (2, 4))):
        for stop in stops:
            trainer = RecallTrainer(recipe(), backbone, tokenizer, tmp_path / folder)
            trainer.run(until=stop)
            trainer.model.detach()
    whole, parts = (DeltaMemAdapter.from_pretrained(tmp_path / n / "adapter") for n in ("whole", "parts"))
    for name, tensor in whole.named_tensors().items():
        torch.testing.assert_close(parts.named_tensors()[name], tensor, rtol=0, atol=0)
    log = [json.loads(line) for line in (tmp_path / "parts" / "log.jsonl").read_text().splitlines()]
    assert [record["step"] for record in log] == [1, 2, 3, 4]
    assert {"closed_1", "closed_1_swapped", "open_3"} <= log[-1].keys()


def test_a_checkpoint_of_another_adapter_is_refused(
    backbone: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    trainer = RecallTrainer(recipe(), backbone, tokenizer, tmp_path)
    trainer._checkpoint()
    trainer.model.detach()
    other = recipe(adapter=DeltaMemConfig(rank=2))
    with pytest.raises(ConfigError, match="another output folder"):
        RecallTrainer(other, backbone, tokenizer, tmp_path).run()


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(
    backbone: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    trainer = RecallTrainer(recipe(), backbone, tokenizer, tmp_path)
    trainer._checkpoint()
    saved = (tmp_path / "checkpoint.pt").read_bytes()
    with torch.no_grad():
        next(iter(trainer.model.adapter.parameters())).fill_(math.nan)
    with pytest.raises(TrainingError, match="last checkpoint"):
        trainer._train_step()
    assert (tmp_path / "checkpoint.pt").read_bytes() == saved
