"""How links are trained: numbers alone, the same for every path, host and control."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Recipe(BaseModel):
    """How links are trained. The same recipe serves every path, host and control.

    After the least-squares fit, ``steps`` train the last link alone, on activations computed once (what lies before it is
    constant then, which makes a step many times cheaper), and ``joint_steps`` train all links together.
    Least-squares links are validated on the first ``screen_samples`` validation images, trained ones on all.
    ``fit_entry``: a link into a host is fitted to what the host's own preprocessing and blocks make of calibration images, so
    the host must see ``fit_samples`` of them; if false, such links start at random. None: as if true where the host's blocks are in
    the process that trains, as if false where the host is a party of its own.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    samples: int = Field(9_600, ge=1)
    fit_samples: int = Field(1_000, ge=2)
    screen_samples: int = Field(1_000, ge=1)
    steps: int = Field(500, ge=0)
    learning_rate: float = Field(1e-3, gt=0)
    joint_steps: int = Field(0, ge=0)
    joint_learning_rate: float = Field(5e-4, gt=0)
    batch_size: int = Field(32, ge=1)
    distillation: float = Field(0.9, ge=0, le=1)
    temperature: float = Field(2.0, gt=0)
    fit_entry: bool | None = None

    def longer(self, times: int) -> Recipe:
        """The same recipe with ``times`` as many batches."""
        return self.model_copy(update={"steps": times * self.steps, "joint_steps": times * self.joint_steps})

    @property
    def total_steps(self) -> int:
        """Batches of a full training."""
        return self.steps + self.joint_steps
