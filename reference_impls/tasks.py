"""Methods whose change depends on the task of an example: which tasks a batch has, and merging for one of them."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from reference_impls.adapter import Adapter, AdapterError


class Tasks(Protocol):
    """What a method's layers ask: how many ``tasks`` there are, and the one ``task`` of all examples, if it is set."""

    tasks: int
    task: int | None


def task_ids(args: tuple[Any, ...], *, wanted: str = "(B,)") -> Tensor:
    """The ids of the batch that a model is called with; AdapterError, with the shape ``wanted``, where it has none."""
    ids = getattr(args[0], "task_ids", None) if args else None
    if not isinstance(ids, Tensor):
        raise AdapterError(f"the batch has no task_ids {wanted}; give one an example, or set adapter.task for all")
    return ids


def check_known(first: int, last: int, tasks: int) -> None:
    """AdapterError for ids from ``first`` to ``last`` that are not among 0 .. ``tasks`` - 1."""
    if not 0 <= first <= last < tasks:
        raise AdapterError(f"task_ids go from {first} to {last}; known: 0 to {tasks - 1}")


class PerTask(Adapter):
    """An adapter with a change for every task: it merges once a ``task`` is chosen, as one weight holds one change."""

    @property
    def tasks(self) -> Tasks:
        """Where the method keeps its tasks."""
        raise NotImplementedError

    @property
    def mergeable(self) -> bool:  # type: ignore[override]
        """Whether one task is chosen: only for one task is the change one weight."""
        return self.task is not None

    @property
    def task(self) -> int | None:
        """The task that all examples belong to; None: their ``task_ids`` say so."""
        return self.tasks.task

    @task.setter
    def task(self, value: int | None) -> None:
        if self._kept is not None:
            raise AdapterError("the adapter is merged for one task; unmerge() before choosing another")
        if value is not None and not 0 <= value < self.tasks.tasks:
            raise AdapterError(f"task is {value}; known: 0 to {self.tasks.tasks - 1}, or None")
        self.tasks.task = value

    def merge(self) -> None:
        """Fold the change for the chosen ``task`` into the base weights; AdapterError where none is chosen."""
        if self.task is None:
            raise AdapterError("every task has a change of its own; set adapter.task to the one to merge")
        super().merge()
