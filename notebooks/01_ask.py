"""What does a memory know? `python 01_ask.py STORE MODEL [ADAPTER]`, after 01_langchain_agent.ipynb has told it."""

import sys

from langchain_deltamem import ChatDeltaMem

QUESTIONS = ("Where do I live?", "What is my dog's name?")

store, *names = sys.argv[1:]
which = dict(zip(("model", "adapter"), names, strict=False))
model = ChatDeltaMem(**which, store=store, recent_messages=0, memory="read", max_new_tokens=16)
for question in QUESTIONS:
    print(question)
    for user in ("nora", "oscar"):
        print(f"    {user:8}", model.invoke(question, session_id=user).text)
    print("    nobody  ", model.invoke(question).text)
