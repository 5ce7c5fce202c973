"""LoCoMo: two friends talk over months, session by session; questions in five categories, scored as its authors do."""

import random
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deltamem_agents.evaluate.suites.conversation import Conversation, Question, Scores, Suite, user
from deltamem_agents.evaluate.suites.scoring import list_f1, stems, token_f1
from deltamem_agents.evaluate.suites.sources import Source, malformed, read_json
from deltamem_agents.messages import Message

SOURCE = Source(
    "locomo", "locomo*.json", "https://github.com/snap-research/locomo (data/locomo10.json; CC BY-NC 4.0: no business)"
)
CATEGORIES = {1: "multi-hop", 2: "temporal", 3: "open-domain", 4: "single-hop", 5: "adversarial"}
UNTOLD = "Not mentioned in the conversation"
_TALK = dict[str, Any]


def locomo(data: Path | None, *, seed: int = 0) -> Suite:
    """LoCoMo's conversations and questions.

    Every message names its speaker and its day. Adversarial questions give two choices, in seeded order.

    Args:
        data: its JSON file, or a folder above it.
        seed: orders the choices.

    Raises:
        ConfigError: the file is missing or of another shape.
    """
    path = SOURCE.files(data)[0]
    try:
        talks = tuple(_conversation(talk, seed) for talk in read_json(path))  # type: ignore[attr-defined]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise malformed(path, error, "a list of objects with conversation, qa and sample_id") from error
    title = "LoCoMo: F1 of stemmed words as its authors score, adversarial questions as a choice of two"
    return Suite(name="locomo", title=title, conversations=talks, score=official_score, answer_tokens=24)


def official_score(answer: str, question: Question) -> Scores:
    """LoCoMo's score: F1 of stemmed words; of each item where several are asked for; 0 or 1 for adversarial ones.

    For open-domain questions what follows a semicolon in the right answer is its explanation.
    """
    gold = question.answers[0]
    if question.category == CATEGORIES[5]:
        return {"f1": float(_chosen(answer, question) == UNTOLD)}
    if question.category == CATEGORIES[1]:
        return {"f1": list_f1(answer, gold, by=stems)}
    if question.category == CATEGORIES[3]:
        gold = gold.split(";")[0].strip()
    return {"f1": token_f1(answer, gold, by=stems)}


def _chosen(answer: str, question: Question) -> str | None:
    """Which choice an answer takes: by its letter, or by saying that nothing was mentioned."""
    said = answer.lower()
    if "not mentioned" in said or "no information available" in said:
        return UNTOLD
    letter = re.match(r"\W*([ab])\b", said)
    if letter is None:
        return None
    return question.candidates["ab".index(letter[1])]


def _conversation(talk: _TALK, seed: int) -> Conversation:
    said: _TALK = talk["conversation"]
    numbers = sorted(int(key.split("_")[1]) for key in said if re.fullmatch(r"session_\d+", key))
    parts: list[tuple[Message, ...]] = []
    places: dict[str, int] = {}
    for number in numbers:
        day = said[f"session_{number}_date_time"].split(" on ")[-1].replace(",", "")
        for turn in said[f"session_{number}"]:
            places[turn["dia_id"]] = len(places)
        parts.append(tuple(user(f"{day}, {_spoken(turn)}") for turn in said[f"session_{number}"]))
    name = str(talk["sample_id"])
    questions = tuple(_question(qa, f"{name}-{n}", places, seed) for n, qa in enumerate(talk["qa"]))
    return Conversation(name=name, parts=tuple(part for part in parts if part), questions=questions)


def _spoken(turn: Mapping[str, Any]) -> str:
    photo = f" [shares {turn['blip_caption']}]" if turn.get("blip_caption") else ""
    return f"{turn['speaker']}: {turn['text']}{photo}"


def _question(qa: Mapping[str, Any], id: str, places: Mapping[str, int], seed: int) -> Question:
    category, text = CATEGORIES[qa["category"]], str(qa["question"]).strip()
    marks = [mark for entry in qa.get("evidence", ()) for mark in re.findall(r"D\d+:\d+", entry)]
    evidence = tuple(sorted({places[mark] for mark in marks if mark in places}))
    if qa["category"] != 5:
        when = " Give an approximate date." if qa["category"] == 2 else ""
        asked = f"Answer in a few words. {text}{when}"
        return Question(id=id, text=asked, answers=(str(qa["answer"]),), category=category, evidence=evidence)
    choices = [UNTOLD, str(qa["adversarial_answer"])]
    random.Random(f"{seed} {id}").shuffle(choices)
    asked = f"{text} Select the correct answer: (a) {choices[0]} (b) {choices[1]}"
    return Question(
        id=id,
        text=asked,
        answers=(UNTOLD,),
        category=category,
        candidates=tuple(choices),
        evidence=evidence,
        recalls=False,  # who knows nothing does best
    )
