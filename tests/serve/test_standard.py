"""LangChain's standard suite through its own client for OpenAI, on the bundled model behind a server."""

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from langchain_core.language_models import BaseChatModel
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests

from deltamem_agents import DeltaMemEngine, bundled_is_cached
from deltamem_agents.serve import ServeConfig
from deltamem_agents.serve.service import Service
from tests.serve.conftest import MODEL, Running, serving


@pytest.fixture(scope="module")
def bundled() -> Iterator[Running]:
    engine = DeltaMemEngine.bundled(store=":memory:")
    with serving(engine, Service(ServeConfig(model_id=MODEL), None)) as running:
        yield running


@pytest.mark.slow
@pytest.mark.asyncio(loop_scope="module")  # ChatOpenAI shares one client, whose connections belong to one event loop
@pytest.mark.filterwarnings("ignore::langchain_core._api.beta_decorator.LangChainBetaWarning")
@pytest.mark.skipif(not bundled_is_cached(), reason="the bundled model has not been fetched")
class TestChatOpenAI(ChatModelIntegrationTests):
    @pytest.fixture(autouse=True)
    def _server(self, bundled: Running, request: pytest.FixtureRequest) -> None:
        self.url = bundled.url
        if request.function.__name__.startswith("test_structured_output"):
            reason = "the bundled 135M model goes on until it is cut, and OpenAI's client refuses what was cut"
            request.node.add_marker(pytest.mark.xfail(reason=reason, raises=openai.LengthFinishReasonError))

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        place = {"model": MODEL, "base_url": f"{self.url}/v1", "api_key": "none", "max_retries": 0}
        return {**place, "max_tokens": 64, "stream_usage": True}

    @property
    def supports_json_mode(self) -> bool:
        return True

    @pytest.mark.xfail(reason="the bundled 135M model answers by itself where it could call a tool")
    @pytest.mark.parametrize("model", [{}, {"output_version": "v1"}], indirect=True)
    def test_agent_loop(self, model: BaseChatModel) -> None:
        super().test_agent_loop(model)

    @pytest.mark.xfail(reason="names of speakers are not served, and said so")
    def test_message_with_name(self, model: BaseChatModel) -> None:
        super().test_message_with_name(model)

    @pytest.mark.xfail(reason="JSON mode shows the model no schema, and the bundled 135M model guesses the keys")
    def test_json_mode(self, model: BaseChatModel) -> None:
        super().test_json_mode(model)
