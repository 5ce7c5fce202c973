"""LangChain's own unit tests for chat models, as they are."""

from pathlib import Path
from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_tests.unit_tests import ChatModelUnitTests

from langchain_deltamem import ChatDeltaMem


@pytest.mark.filterwarnings("ignore:.*for remote services:UserWarning")
class TestChatDeltaMemUnit(ChatModelUnitTests):
    @pytest.fixture(autouse=True)
    def _folders(self, folders: tuple[Path, Path]) -> None:
        self.folders = folders

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatDeltaMem

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": str(self.folders[0]), "adapter": str(self.folders[1]), "store": ":memory:"}

    @property
    def has_tool_calling(self) -> bool:
        return False

    @property
    def has_tool_choice(self) -> bool:
        return False

    @property
    def has_structured_output(self) -> bool:
        return False

    @property
    def returns_usage_metadata(self) -> bool:
        return True
