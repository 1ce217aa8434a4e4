"""The loss of a classifier that has a teacher."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

    from loopline.data.manifest import Split

UNLABELLED = -100  # class of a sample that only a teacher answers; torch's cross entropy leaves it out


@dataclass(frozen=True)
class Taught:
    """What a teacher answers for each sample: probabilities float32 (n, classes). See `tasks.teacher.ClassifierTeacher`."""

    probabilities: NDArray[np.float32]
    temperature: float
    weight: float

    def loss(self, logits: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Return T^2 KL(teacher_T || student_T), the mean over the batch; p_T is softmax(log(p) / T) (Hinton et al., 2015)."""
        import torch

        known = torch.from_numpy(self.probabilities)[rows].to(logits.device).clamp_min(1e-8)
        target = torch.softmax(known.log() / self.temperature, 1)
        answer = torch.log_softmax(logits.float() / self.temperature, 1)
        return self.temperature**2 * torch.nn.functional.kl_div(answer, target, reduction="batchmean")

    def mixed(
        self, logits: torch.Tensor, rows: torch.Tensor, targets: torch.Tensor, loss_of: torch.nn.Module
    ) -> torch.Tensor:
        """Return the weighted sum of this loss and that of the labels, in which an unlabelled sample counts as 0."""
        share = (targets != UNLABELLED).float().mean()
        # Without any label, cross entropy is not a number.
        labels = share * loss_of(logits, targets) if share > 0 else 0.0
        return (1 - self.weight) * labels + self.weight * self.loss(logits, rows)


def labelled(train: Split) -> int:
    """Return the number of samples with a label. They come first."""
    return int((np.asarray(train.targets) != UNLABELLED).sum())
