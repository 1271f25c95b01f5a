"""When to stop, when to learn slower, and which epoch is the best.

Nothing here depends on the clock, so that an interrupted run decides as the uninterrupted one would.
"""

import dataclasses

from model.config import LearningConfig

PLATEAU_MIN_DELTA = 1e-4  # the default of tf_keras.callbacks.ReduceLROnPlateau


@dataclasses.dataclass(frozen=True, kw_only=True)
class Monitor:
    """Follows one validation metric: the best epoch, early stopping, and the plateau schedule.

    Counts as `EarlyStopping` and `ReduceLROnPlateau` of tf_keras do.

    Attributes:
        best: its best value so far; `None` before the first epoch.
        best_epoch: the epoch of that value, counted from 1; 0 before the first epoch has ended.
        epochs_without_best: epochs since then.
        plateau_best, epochs_on_plateau: the same for the plateau, which ignores improvements below `PLATEAU_MIN_DELTA`.
        learning_rate_scale: factor of the learning rate after all plateaus so far.
    """

    best: float | None = None
    best_epoch: int = 0
    epochs_without_best: int = 0
    plateau_best: float | None = None
    epochs_on_plateau: int = 0
    learning_rate_scale: float = 1.0

    def after(self, epoch: int, value: float, learning: LearningConfig) -> "Monitor":
        """Return the counters after an epoch; the epoch is the best so far if it is their `best_epoch`.

        Args:
            epoch: counted from 1.
            value: the monitored metric.
            learning: which way is better, patience and factor.
        """
        sign = -1.0 if learning.monitor == "loss" else 1.0
        if self.best is None or sign * value > sign * self.best:
            new = dataclasses.replace(self, best=value, best_epoch=epoch, epochs_without_best=0)
        else:
            new = dataclasses.replace(self, epochs_without_best=self.epochs_without_best + 1)
        if learning.schedule != "plateau":
            return new
        if self.plateau_best is None or sign * value > sign * self.plateau_best + PLATEAU_MIN_DELTA:
            return dataclasses.replace(new, plateau_best=value, epochs_on_plateau=0)
        if self.epochs_on_plateau + 1 < learning.plateau_patience:
            return dataclasses.replace(new, epochs_on_plateau=self.epochs_on_plateau + 1)
        scale = self.learning_rate_scale * learning.plateau_factor
        return dataclasses.replace(new, learning_rate_scale=scale, epochs_on_plateau=0)

    def wants_to_stop(self, learning: LearningConfig) -> bool:
        """Tell whether early stopping ends the run."""
        return 0 < learning.early_stopping_patience <= self.epochs_without_best
