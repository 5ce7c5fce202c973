"""A training run as one of several processes; a launcher starts it from the tests.

Usage: python -m tests.train.two_processes OUTPUT UNTIL [LEARNING_RATE [ALIGN]]
"""

import sys
from pathlib import Path

import torch
from accelerate import Accelerator

from deltamem_agents.errors import TrainingError
from deltamem_agents.train import Trainer
from deltamem_agents.train.recipe import Optimiser
from tests.chat import byte_tokenizer, chat_backbone
from tests.train.conftest import small_recipe


def main(output: str, until: str, learning_rate: str = "0.002", align: str = "0") -> None:
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)
    optimiser = Optimiser(learning_rate=float(learning_rate), warm_up=0)
    recipe = small_recipe(align=float(align), optimiser=optimiser)
    trainer = Trainer(recipe, chat_backbone(), byte_tokenizer(), Path(output), accelerator=accelerator)
    try:
        trainer.run(until=int(until))
    except TrainingError as error:
        print(f"process {accelerator.process_index}: {error}", flush=True)
    weights = torch.cat([p.detach().flatten() for p in trainer.model.adapter.parameters()])
    everywhere = accelerator.gather(weights).view(accelerator.num_processes, -1)
    same = torch.equal(everywhere[0], everywhere[-1])
    print(f"processes {len(everywhere)}, step {trainer.step}, same {same}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
