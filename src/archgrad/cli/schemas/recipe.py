"""How weights are trained, as options: the fields of `archgrad.Recipe`, and a teacher."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from archgrad.cli.schemas.options import MODEL, Options, as_given


class RecipeOptions(Options):
    """The recipe of the network that is handed back; what is not given stays at the method's default.

    Optimizer, rates, schedule and clip are those of the weights in a search too.
    """

    panel = "Training"

    optimizer: Literal["sgd", "adam", "adamw"] | None = Field(
        None, description="sgd, adam or adamw; default: the method's, mostly sgd."
    )
    learning_rate: float | None = Field(None, gt=0, description="Default: sgd 0.05, adam 0.01, adamw 0.001.")
    weight_decay: float | None = Field(None, ge=0, description="Default: sgd 0.0005, adamw 0.05; adam has none.")
    schedule: Literal["cosine", "constant"] | None = Field(
        None, description="Learning rate: cosine (default), half a cosine after a short warm-up, or constant."
    )
    clip: float | None = Field(None, gt=0, description="Largest norm of the gradient; default: sgd 5, others none.")
    average: float | None = Field(
        None, gt=0, lt=1, description="Keep a moving average of the weights with this decay, such as 0.999."
    )
    accumulate: int | None = Field(None, ge=1, description="Batches whose gradients are averaged before each step.")
    drop_path: float | None = Field(
        None, ge=0, lt=1, description="Probability of dropping a path, where the network has drop-path (DARTS: 0.2)."
    )
    best_epoch: bool = Field(False, description="Keep the epoch that scored best on the validation part.")

    @model_validator(mode="after")
    def _check_recipe(self) -> RecipeOptions:
        if self.optimizer == "adam" and self.weight_decay is not None:
            raise ValueError(
                f"weight_decay={self.weight_decay} was given, and adam has none. Give --optimizer adamw or sgd"
            )
        if self.best_epoch and self.average is not None:
            raise ValueError(
                f"best_epoch and average={self.average} were given, and both choose the weights. Give one of them"
            )
        return self


class DistillOptions(Options):
    """A trained network to learn from, beside the data: the arguments of `archgrad.Distilled`."""

    panel = "Training"
    # Whether the command's own network may be the teacher, with its --weights.
    teaches_itself: ClassVar[bool] = False

    distill: bool = Field(
        False, description="Learn from a trained network too: from --teacher, or, in slim, from MODEL with --weights."
    )
    teacher: str | None = Field(None, description=f"The network to learn from: {MODEL}.")
    teacher_weights: str | None = Field(None, description="Its trained weights, as for --weights.")
    distill_weight: float | None = Field(
        None, gt=0, le=1, description="Weight of the distance from the teacher in the loss; default 0.5."
    )
    temperature: float | None = Field(
        None, gt=0, description="That the logits of both are divided by before they are compared; default 4."
    )

    @model_validator(mode="after")
    def _check_teacher(self) -> DistillOptions:
        names = [name for name in DistillOptions.model_fields if name not in Options.model_fields]
        given = [each for name in names if name != "distill" and (each := as_given(self, name))]
        if given and not self.distill:
            raise ValueError(f"{given[0]} goes with --distill: give both, or neither")
        if self.teacher_weights and not self.teacher:
            raise ValueError(f"teacher_weights={self.teacher_weights!r} goes with --teacher MODEL")
        if self.distill and not self.teacher and not (self.teaches_itself and getattr(self, "weights", None)):
            weights = ", or --weights FILE, and MODEL itself is the teacher" if self.teaches_itself else ""
            raise ValueError(
                f"distill was given without a teacher. Give --teacher MODEL --teacher-weights FILE{weights}"
            )
        return self
