"""What LangChain should know about a model before its weights are loaded."""

import json
from pathlib import Path

from langchain_core.language_models import ModelProfile

from deltamem_agents import bundled_is_cached, bundled_path


def model_profile(model: str, context: int | None) -> ModelProfile:
    """A text model with tools and structured output, which decoding is held to whatever the model has learnt.

    Args:
        model: "bundled", a folder, or a hub id.
        context: how many tokens the model can attend to, where that is known.
    """
    profile = ModelProfile(
        name=model,
        open_weights=True,
        text_inputs=True,
        text_outputs=True,
        image_inputs=False,
        image_url_inputs=False,
        pdf_inputs=False,
        audio_inputs=False,
        video_inputs=False,
        image_tool_message=False,
        pdf_tool_message=False,
        attachment=False,
        tool_calling=True,
        tool_choice=True,
        tool_call_streaming=True,
        structured_output=True,
        temperature=True,
    )
    context = _context(model) if context is None else context
    if context is not None:
        profile["max_input_tokens"] = context
    return profile


def _context(model: str) -> int | None:
    """Read off the config in a folder; a hub id is not looked up for it."""
    if model == "bundled" and not bundled_is_cached():
        return None
    folder = bundled_path() if model == "bundled" else Path(model)
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    length = config.get("text_config", config).get("max_position_embeddings")
    return length if isinstance(length, int) else None
