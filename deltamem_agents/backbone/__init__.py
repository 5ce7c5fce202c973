"""The frozen models: where they come from and how they are loaded."""

from deltamem_agents.backbone.bundled import bundled_is_cached, bundled_path

__all__ = ["bundled_is_cached", "bundled_path"]
