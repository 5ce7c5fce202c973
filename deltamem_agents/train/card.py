"""The model card of a trained adapter."""

from deltamem_agents.adapter import DeltaMemAdapter
from deltamem_agents.train.recipe import Recipe
from deltamem_agents.train.runlog import Record

GENERATED = "episodes made by `deltamem_agents.train` (facts, updates, label maps, other talk; no personal data)"


def model_card(recipe: Recipe, adapter: DeltaMemAdapter, figures: Record, *, steps: int, seconds: float) -> str:
    """Markdown: what it is, what it was made of, what it can do.

    Args:
        recipe: how it was trained.
        adapter: what came out.
        figures: of the last evaluation.
        steps: optimiser steps done.
        seconds: how long they took.
    """
    config = adapter.config
    size = sum(p.numel() for p in adapter.parameters()) / 1e6
    data = [GENERATED, *(f"`{s.path.name}` ({s.format}; {s.licence or 'licence not given'})" for s in recipe.data)]
    start = f"continued from {recipe.init_adapter.name}" if recipe.init_adapter else "random"
    stages = "; ".join(
        f"{s.steps} × {s.facts} facts, {' + '.join(s.kinds)}, {s.open_share:.0%} open" for s in recipe.stages
    )
    losses = ", ".join(f"{n} {w}" for n, w in recipe.losses if isinstance(w, float) and w and n != "margin_nats")
    o = recipe.optimiser
    rows = {
        "backbone": f"{recipe.model} ({adapter.backbone}), frozen, {recipe.dtype}",
        "adapter": f"{config.num_state_heads} state heads of rank {config.rank}, corrects "
        f"{', '.join(config.delta_heads)}, {len(adapter.paths)} layers, {size:.2f} M parameters, half precision; "
        f"absorbs {', '.join(config.absorb_roles)}",
        "data": "; ".join(data),
        "start": f"{start}{'; fresh heads aligned' if recipe.align else ''}"
        f"{f'; quietened by {recipe.quiet:g}' if recipe.quiet else ''}; seed {recipe.seed}",
        "stages": stages,
        "losses": losses,
        "optimiser": f"AdamW {o.learning_rate:g}, betas {o.betas}, weight decay {o.weight_decay:g}, clip {o.clip:g}, "
        f"{o.warm_up} steps of warm-up, cosine to {o.final:.0%}",
        "length": f"{steps} steps of {recipe.rows * recipe.accumulate} answers, {seconds / 60:.0f} minutes",
        "weights": f"{1 - recipe.keep:.0%} trained, {recipe.keep:.0%} as they were at the start",
        "licence": recipe.licence,
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    found = "\n".join(f"| {name} | {own} | {other} |" for name, own, other in scores(figures))
    return (
        f"# A δ-mem adapter for {recipe.model}\n\n| | |\n|---|---|\n{table}\n\n"
        f"Exact answers, teacher forced, in held-out phrasings and values; {recipe.evaluate_episodes} episodes of each "
        f"kind.\n\n| kind | own memory | another's memory |\n|---|---|---|\n{found}\n"
    )


def scores(figures: Record) -> list[tuple[str, str, str]]:
    """Each kind of episode of an evaluation, with what the own memory and another's reach, in words."""
    names = [name for name in figures if f"{name}_swapped" in figures]
    return [(name, _score(figures, name), _score(figures, f"{name}_swapped")) for name in names]


def _score(figures: Record, name: str) -> str:
    nats = figures.get(f"{name}_nats")
    return f"{figures[name]:.1%}" + ("" if nats is None else f" of tokens, {nats:.3f} nats each")
