"""What a network is trained on and scored by: data, or a task of the user's own."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field, model_validator

from archgrad.cli.schemas.options import DATA, BatchOptions, Options, as_given


class TaskOptions(BatchOptions):
    """DATA for classification, or code that gives any task."""

    panel = "Data"
    needs_task: ClassVar[bool] = True

    data: str | None = Field(None, description=f"{DATA}.")
    task: str | None = Field(
        None,
        description="In place of DATA: path/to/file.py:function or package.module:function, which returns a task of "
        "any kind.",
    )
    smoothing: float = Field(0.0, ge=0, lt=1, description="Label smoothing.")

    @model_validator(mode="after")
    def _check_task(self) -> TaskOptions:
        if self.task and self.data:
            raise ValueError(f"DATA {self.data!r} and task={self.task!r} were given. Give one of them")
        if self.needs_task and not (self.task or self.data):
            raise ValueError(missing_task())
        of_data = TaskOptions.model_fields.keys() - Options.model_fields.keys() - {"data", "task"}
        given = sorted(filter(None, (as_given(self, name) for name in of_data)))
        if self.task and given:
            raise ValueError(f"{given[0]} goes with DATA; the code of task={self.task!r} decides that itself")
        return self


def missing_task(method: str = "") -> str:
    """What to say where neither data nor a task was given."""
    needed = f": {method} trains" if method else ""
    return f"DATA is missing{needed}. Give {DATA}. Or give a task of your own: --task path/to/file.py:function"
