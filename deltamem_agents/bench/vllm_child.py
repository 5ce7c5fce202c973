"""vLLM's end of `bench.vllm`, run as a script by the Python that has it: nothing of this package is imported.

Each line of stdin is answered by one of stdout, in JSON: `{"prompts": ids of each}` by null when all are fed, and
`{"tokens": n}` by the last token of each when so many more are decoded. The first answer comes when vLLM is ready.
"""

import json
import os
import sys

from vllm import EngineArgs, LLMEngine, SamplingParams


def main() -> None:
    """Answers until stdin ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what vLLM prints is no answer
    options = json.loads(sys.argv[1])
    length, sessions = options["length"] + 1, options["sessions"]  # the last token is chosen, and not fed
    engine = LLMEngine.from_engine_args(
        EngineArgs(
            model=options["model"],
            dtype="bfloat16",
            skip_tokenizer_init=True,
            max_model_len=length,
            max_num_seqs=sessions,
            max_num_batched_tokens=sessions * length,
            enable_prefix_caching=False,
            disable_log_stats=True,
        )
    )
    print("null", file=answers)
    running: list[str] = []
    said: dict[str, list[int]] = {}
    begun = 0

    def step_until(count: int) -> None:
        while min(len(said[name]) for name in said) < count:
            for output in engine.step():
                said[output.request_id] = list(output.outputs[0].token_ids)

    for line in sys.stdin:
        asked = json.loads(line)
        if "prompts" in asked:
            engine.abort_request(running, internal=True)
            running, said = [], {}
            for ids in asked["prompts"]:
                name, begun = str(begun), begun + 1
                greedy = SamplingParams(
                    temperature=0.0, max_tokens=length - len(ids), ignore_eos=True, detokenize=False
                )
                running.append(engine.add_request(name, {"prompt_token_ids": ids}, greedy))
                said[name] = []
            step_until(1)
            print("null", file=answers)
        else:
            step_until(len(next(iter(said.values()))) + asked["tokens"])
            print(json.dumps([ids[-1] for ids in said.values()]), file=answers)


if __name__ == "__main__":
    main()
