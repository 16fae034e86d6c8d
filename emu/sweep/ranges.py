"""What a key of the description may be in a sweep that draws or searches: one of four kinds of range."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

if TYPE_CHECKING:
    from optuna import Trial

_Bounds = Annotated[list[int | float], Field(min_length=2, max_length=2)]


class Range(BaseModel):
    """The values that a key may have; whole numbers where both bounds are whole, and both bounds belong to it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    uniform: _Bounds | None = Field(None, description="any number between two, each as likely")
    log_uniform: _Bounds | None = Field(None, description="the same, but each magnitude as likely")
    powers_of_two: _Bounds | None = Field(None, description="powers of two between two of them, each as likely")
    choices: list[Any] | None = Field(None, min_length=1, description="one of some values")

    @model_validator(mode="after")
    def _is_one_kind(self) -> Range:
        if len(self.model_fields_set) != 1:
            raise ValueError("needs one of uniform, log_uniform, powers_of_two and choices")
        if self.choices is not None:
            if len({repr(choice) for choice in self.choices}) < len(self.choices):
                raise ValueError("names a choice twice")
            return self
        low, high = self._bounds
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ValueError(f"needs [lowest, highest] with lowest < highest, not [{low}, {high}]")
        if self.log_uniform and low <= 0:
            raise ValueError(f"needs bounds above 0, not {low}")
        if self.powers_of_two and not (self._is_whole and low > 0 and not low & (low - 1) and not high & (high - 1)):
            raise ValueError(f"needs powers of two, not [{low}, {high}]")
        return self

    @property
    def _bounds(self) -> list[Any]:
        return self.uniform or self.log_uniform or self.powers_of_two or []

    @property
    def _is_whole(self) -> bool:
        return all(isinstance(bound, int) for bound in self._bounds)

    @property
    def ends(self) -> list[Any]:
        """Values which, if they are sound, all others are too, as far as can be said of each alone."""
        return self.choices if self.choices is not None else self._bounds

    def draw(self, generator: np.random.Generator) -> Any:
        """One value."""
        if self.choices is not None:
            return self.choices[int(generator.integers(len(self.choices)))]
        low, high = self._bounds
        if self.powers_of_two:
            return 1 << int(generator.integers(low.bit_length() - 1, high.bit_length()))
        if self._is_whole:
            if self.uniform:
                return int(generator.integers(low, high, endpoint=True))
            # Half a number more on either side, so that the bounds are as likely as their neighbours.
            drawn = math.exp(generator.uniform(math.log(low - 0.5), math.log(high + 0.5)))
            return min(max(round(drawn), low), high)
        if self.uniform:
            return float(generator.uniform(low, high))
        return min(max(math.exp(generator.uniform(math.log(low), math.log(high))), float(low)), float(high))

    def suggest(self, trial: Trial, key: str) -> Any:
        """The value that a search wants to try."""
        if self.choices is not None:
            # By place: the library knows only plain values.
            return self.choices[int(trial.suggest_categorical(key, list(range(len(self.choices)))))]
        low, high = self._bounds
        if self.powers_of_two:
            return 1 << trial.suggest_int(key, low.bit_length() - 1, high.bit_length() - 1)
        if self._is_whole:
            return trial.suggest_int(key, low, high, log=self.log_uniform is not None)
        return trial.suggest_float(key, low, high, log=self.log_uniform is not None)
