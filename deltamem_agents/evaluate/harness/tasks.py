"""Tasks by name, with their data from where the harness gets it, or from files that are here already."""

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from deltamem_agents.errors import ConfigError
from deltamem_agents.evaluate.suites.sources import Source

if TYPE_CHECKING:
    from lm_eval.api.task import Task
    from lm_eval.tasks import TaskManager

LOCAL: dict[str, Source] = {
    "ifeval": Source(
        "ifeval",
        "input_data.jsonl",
        "https://github.com/google-research/google-research/tree/master/instruction_following_eval (Apache-2.0)",
    )
}
"""Tasks whose data can be taken from files as their authors publish them, by the harness' name for the task."""


def require_harness() -> None:
    """Call this before anything that imports lm_eval.

    Raises:
        ConfigError: lm_eval is not installed.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise ConfigError(
            "these tasks are lm-evaluation-harness', and lm_eval is not installed: "
            'pip install "deltamem-agents[harness]"'
        )


def task_manager(include_path: Path | None = None, metadata: Mapping[str, object] | None = None) -> "TaskManager":
    """The harness' index of tasks.

    Args:
        include_path: a folder of more tasks, as YAML files.
        metadata: what tasks that make their data themselves want to know, such as RULER's `max_seq_lengths`.

    Raises:
        ConfigError: lm_eval is not installed, or the folder is not there.
    """
    require_harness()
    from lm_eval.tasks import TaskManager

    if include_path is not None and not include_path.is_dir():
        raise ConfigError(f"{include_path} is no folder, expected one with the YAML files of tasks: check the path")
    return TaskManager(include_path=include_path, metadata=dict(metadata or {}))


def load_tasks(manager: "TaskManager", names: Sequence[str], *, data: Path | None = None) -> "list[str | Task]":
    """Tasks as the harness' `simple_evaluate` takes them; all are loaded once, so that what is missing shows here.

    Args:
        manager: the index.
        names: tasks, groups or tags.
        data: the file or folder that one of the tasks in `LOCAL` takes its data from.

    Raises:
        ConfigError: there is no such task, its data cannot be had, or a package that it needs is not installed.
    """
    known = set(manager.all_tasks)
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise ConfigError(
            f"tasks are {', '.join(names) or 'none'}, unknown {', '.join(unknown) or 'all'}: see `lm_eval ls tasks` "
            "for their names, or name a folder with your own by --include-path"
        )
    if data is not None and not LOCAL.keys() & set(names):
        raise ConfigError(
            f"data is {data}, but none of {', '.join(names)} can take it, only {', '.join(LOCAL)}: write a task's YAML "
            "that points at your files, and name its folder by --include-path"
        )
    return [_task(manager, name, data) for name in names]


def _task(manager: "TaskManager", name: str, data: Path | None) -> "str | Task":
    task: str | Task = name
    try:
        if data is not None and name in LOCAL:
            task = _on_files(manager, name, LOCAL[name].files(data))
        else:
            manager.load([name])
    except ImportError as error:
        raise ConfigError(
            f"the task {name} needs a package that is not installed ({error}): pip install "
            f'"lm_eval[tasks]", or only what is missing'
        ) from error
    except OSError as error:  # whatever datasets and the hub raise where there is no network, no file or no permission
        files = f", give its files by --data ({LOCAL[name].origin})" if name in LOCAL else ""
        raise ConfigError(
            f"the data of the task {name} cannot be had ({type(error).__name__}: {error}): it comes from the Hugging "
            f"Face hub. Run where there is a network{files}, or point a task's YAML at local files and name its folder "
            "by --include-path"
        ) from error
    if name == "ifeval":
        _require_sentences()
    return task


def _on_files(manager: "TaskManager", name: str, files: Sequence[Path]) -> "Task":
    """The task as it is, but for where its data come from. A group can say that of its members, a name can't."""
    kwargs = {"data_files": {"train": [str(path) for path in files]}}
    own = {"task": name, "dataset_path": "json", "dataset_name": None, "dataset_kwargs": kwargs}
    return manager.load([{"group": f"{name}-files", "task": [own]}])["tasks"][name]


def _require_sentences() -> None:
    """IFEval counts sentences, after everything is generated: what it needs is looked for before."""
    import nltk  # type: ignore[import-untyped]  # here: an extra

    try:
        nltk.data.find("tokenizers/punkt_tab")
    except LookupError as error:
        raise ConfigError(
            "IFEval counts sentences by nltk's punkt_tab, which is neither here nor could be fetched: run "
            "python -m nltk.downloader punkt_tab where there is a network, and set NLTK_DATA to its folder"
        ) from error
