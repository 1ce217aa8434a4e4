"""Which settings a search may change, and a model's settings with other values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from loopline.errors import LooplineError
from loopline.settings import Adopt, ModelSettings
from loopline.tasks.search_space import Choices, Range

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

Values = dict[str, Any]  # a key such as `train.learning_rate` -> its value
# Other settings decide which samples judge the trials, so their figures could not be compared.
PARTS = ("train", "input")


def with_values(model: ModelSettings, values: Values) -> ModelSettings:
    """Return the settings with these values. Raises LooplineError if they are invalid together."""
    content = model.model_dump()
    for key, value in values.items():
        part, name = key.split(".", 1)
        content[part][name] = value
    try:
        return type(model).model_validate(content)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        raise LooplineError(f"tune.space: {values} cannot be tried: {problems}") from error


def current(model: ModelSettings, keys: Mapping[str, Any]) -> Values:
    """Return the values in params.yaml of these keys."""
    content = model.model_dump()
    return {key: content[key.split(".", 1)[0]][key.split(".", 1)[1]] for key in keys}


def distributions(name: str, model: ModelSettings) -> dict[str, BaseDistribution]:
    """Return Optuna's distribution for each key of the model's `tune.space`, after a check of every key and bound.

    Raises LooplineError if there is no space, or a key is unknown, cannot be tuned, or has an invalid value.
    """
    where = f"models.{name}.tune"
    if model.tune is None:
        raise LooplineError(
            f"params.yaml has no {where}: add a space, for example\n"
            "    tune:\n      space:\n        train.learning_rate: {low: 0.0005, high: 0.02, log: true}"
        )
    if isinstance(model.train, Adopt):
        raise LooplineError(f"{where}: an adopted model is not trained, so there is nothing to tune")
    if getattr(model.train, "teacher", None):
        raise LooplineError(f"{where}: trials have no teacher: tune the model without train.teacher, then add it")
    content = model.model_dump()
    kinds: dict[str, BaseDistribution] = {}
    for key, values in model.tune.space.items():
        part, _, setting = key.partition(".")
        if part not in PARTS:
            raise LooplineError(f"{where}.space: {key} cannot be tuned: keys begin with {' or '.join(PARTS)}")
        if key == "train.workers":
            raise LooplineError(f"{where}.space: train.workers changes no result, so there is nothing to search")
        if setting not in content[part]:
            known = ", ".join(sorted(content[part]))
            raise LooplineError(f"{where}.space: there is no setting {key}: {part} has {known}")
        tried, kinds[key] = _distribution(f"{where}.space: {key}", values, content[part][setting])
        for value in tried:
            with_values(model, {key: value})
    return kinds


def _distribution(where: str, values: Range | Choices, now: Any) -> tuple[tuple[Any, ...], BaseDistribution]:
    """Return values to check, and the distribution. now: the value in params.yaml, whose type decides."""
    from optuna import distributions as optuna

    if isinstance(values, Choices):
        return values.choices, optuna.CategoricalDistribution(values.choices)
    ends_whole = values.low.is_integer() and values.high.is_integer()
    if isinstance(now, bool | float) or (now is None and not ends_whole):
        return (values.low, values.high), optuna.FloatDistribution(values.low, values.high, log=values.log)
    if not ends_whole:
        raise LooplineError(f"{where} is a whole number, so low and high must be, too")
    low, high = int(values.low), int(values.high)
    return (low, high), optuna.IntDistribution(low, high, log=values.log)


def contains(kinds: Mapping[str, BaseDistribution], values: Values) -> bool:
    """Return whether the values lie in the space."""
    try:
        return all(
            distribution._contains(distribution.to_internal_repr(values[key])) for key, distribution in kinds.items()
        )
    except (ValueError, TypeError):  # a choice that is not listed, or a value that is no number
        return False
