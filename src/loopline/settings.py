"""The only reader of `params.yaml`: frozen, strict, typed. An unknown or misspelt key is an error that names it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Union

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, create_model, model_validator

from loopline.errors import LooplineError
from loopline.tasks.folders import BUILT_IN, part
from loopline.tasks.spec import model_name

Fraction = Annotated[float, Field(ge=0, le=1)]
PARAMS = Path("params.yaml")
# In a repository: where retrainings, drills and DVC's experiments keep their working copies
HIDDEN = (".loopline", ".dvc")


class Strict(BaseModel):
    """Frozen; refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class SampleGroup(Strict):
    """What tells that samples belong together: the text that a regular expression captures in their path, or a column."""

    path: str | None = None
    column: str | None = Field(default=None, min_length=1)

    @model_validator(mode="after")
    def _one_with_a_capture(self) -> SampleGroup:
        if (self.path is None) == (self.column is None):
            raise ValueError("give either path or column")
        try:
            captures = re.compile(self.path or "()").groups
        except re.error as error:
            raise ValueError(f"path is not a regular expression: {error}") from error
        if not captures:
            raise ValueError("path captures nothing: put the part that names the group into round brackets")
        return self

    def of(self, path: str, cell: str | None) -> str | None:
        """The group of a sample with this path and this cell of the column, None where it has none."""
        if self.path is None:
            return (cell or "").strip() or None
        match = re.search(self.path, path)
        return "/".join(part or "" for part in match.groups()) if match else None


class SplitSettings(Strict):
    """Shares of the samples that a hash of their content, or of their group, sends to validation and test.

    A published split is kept.
    """

    seed: int
    val: Fraction
    test: Fraction
    group: SampleGroup | None = None

    @property
    def column(self) -> str | None:
        """The column of tables that names the samples' groups."""
        return self.group.column if self.group else None


class Expectations(Strict):
    """What Great Expectations demands of the manifest before anything is trained."""

    min_samples: int = Field(ge=1)
    min_per_class: int = Field(ge=1)  # in the training split
    max_imbalance: float = Field(ge=1)  # samples of the largest class / of the smallest, training split
    max_set_aside: Fraction  # share of the samples that ingest may set aside
    min_side: int = Field(default=1, ge=1)  # pixels
    max_side: int = Field(default=8192, ge=1)  # pixels
    max_characters: int = Field(default=10_000, ge=1)


class ImageShape(Strict):
    """The pixels that the model takes: any image is resized to them."""

    height: int = Field(ge=8)
    width: int = Field(ge=8)
    channels: Literal[1, 3]


class Fit(Strict):
    """Settings that every training loop shares."""

    epochs: int = Field(ge=1)
    patience: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    learning_rate: float = Field(gt=0)
    pretrained: str | None = None


class ClassifierFit(Fit):
    """Settings of every training of a classifier."""

    weight_decay: float = Field(ge=0)
    label_smoothing: Fraction
    class_weights: bool


class Export(Strict):
    """Largest absolute difference allowed between torch and FP32 ONNX, in probability (or score)."""

    tolerance: float = Field(gt=0)
    embedding: int = Field(ge=1, le=64)


class Quantize(Strict):
    """When INT8 may ship instead of FP32."""

    precision: Literal["auto", "fp32"] = (
        "auto"  # auto: INT8 ships where it is as accurate, smaller and not clearly slower
    )
    calibration_samples: int = Field(ge=8)
    max_loss: Fraction  # INT8 ships only if the lower bound of (INT8 - FP32) stays above -max_loss
    tolerance: float = Field(gt=0)  # mean absolute difference allowed between FP32 and INT8, in probability
    methods: tuple[Literal["minmax", "entropy", "percentile"], ...] = ("minmax",)

    @model_validator(mode="before")
    @classmethod
    def _no_clock(cls, given: Any) -> Any:
        if isinstance(given, dict) and "min_speedup" in given:
            raise ValueError(
                "min_speedup is gone, for a second run could decide otherwise: leave it out, and INT8 ships unless it is clearly "
                "slower; write precision: fp32 to ship FP32"
            )
        return given


class Evaluate(Strict):
    """What the model must reach on the test split."""

    floors: dict[str, float]  # metric name -> least value; the stage fails below it
    # true: a gain over the simple model must have been measured. "proven": and the lower bound of its interval is over 0
    must_beat_simple: bool | Literal["proven"]
    resamples: int = Field(default=1000, ge=100)


class Calibrate(Strict):
    """What counts as drift: see docs/drift.md."""

    bins: int = Field(ge=2)  # of equal mass, for each signal
    # Chance that `windows` windows in a row of unchanged traffic raise any alarm
    false_alarms: float = Field(gt=0, lt=1)
    windows: int = Field(default=24, ge=1)
    least_samples: int = Field(default=50, ge=20)  # in a window: no verdict under it
    max_loss: Fraction = 0.025  # of estimated quality: more is harm, less is a notice
    streams: int = Field(default=250, ge=100)  # simulated without drift for each size of window


class ModelSettings(Strict):
    """What every model has. A task narrows `task`, `input` and `train` in a class of its own, see `tasks.base`."""

    task: str
    input: Strict
    train: Fit
    dataset: str
    split: SplitSettings
    expectations: Expectations
    export: Export
    quantize: Quantize
    evaluate: Evaluate
    calibrate: Calibrate


class Promotion(Strict):
    """When a challenger may replace the champion: see docs/gates.md."""

    min_gain: float  # lower bound of (challenger - champion) must be at least this
    max_slice_loss: Fraction
    max_size_ratio: float = Field(gt=0)
    max_latency_ratio: float = Field(gt=0)


ModelName = Annotated[str, AfterValidator(model_name)]


class Settings(Strict):
    """All of params.yaml."""

    seed: int
    models: dict[ModelName, ModelSettings]
    promotion: Promotion


def _settings_for(raw: Any) -> type[Settings]:
    """Return settings in which each model has its task's own class. Raises LooplineError on an unknown task."""
    models = raw.get("models") if isinstance(raw, dict) else None
    values = models.values() if isinstance(models, dict) else ()
    named = {model["task"] for model in values if isinstance(model, dict) and isinstance(model.get("task"), str)}
    kinds = tuple(part(name, "parameters").PARAMETERS for name in (*BUILT_IN, *sorted(named - {*BUILT_IN})))
    of_its_task: Any = Annotated[Union[kinds], Field(discriminator="task")]  # noqa: UP007 - known at run time only
    return create_model("Settings", __base__=Settings, models=(dict[ModelName, of_its_task], ...))


def read_yaml(path: Path) -> Any:
    """The content of a YAML file of ours. Raises LooplineError where it is missing, unreadable, or not valid."""
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise LooplineError(f"{path} not found: run this from the repository's root") from error
    except OSError as error:
        raise LooplineError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise LooplineError(f"{path} is not UTF-8, at byte {error.start}: save it as UTF-8") from error
    except yaml.YAMLError as error:
        raise LooplineError(f"{path} is not valid YAML: {error}") from error


def load(path: Path = PARAMS) -> Settings:
    """Read and check `path`. Raises LooplineError with one line for each wrong key."""
    raw = read_yaml(path)
    try:
        return _settings_for(raw).model_validate(raw)
    except ValidationError as error:
        lines = [f"  {'.'.join(map(str, e['loc']))}: {e['msg']} (got {e['input']!r:.60})" for e in error.errors()]
        raise LooplineError(f"{path} has {len(lines)} wrong setting(s):\n" + "\n".join(lines)) from error


def repository() -> Path:
    """Return the repository that the current folder is, or is a working copy of."""
    here = Path.cwd()
    outer = [folder for folder in here.parents if here.relative_to(folder).parts[0] in HIDDEN]
    return next((folder for folder in reversed(outer) if (folder / PARAMS).is_file()), here)


def located(path: str) -> Path:
    """Return where `path`, as params.yaml gives it, leads: in a working copy to where it leads in the repository.

    What the working copy holds itself comes first. A path that leads nowhere is returned as it is. Raises LooplineError on what no
    file can be called.
    """
    try:
        here, given = Path.cwd(), Path(path).expanduser()
        own = here in (here / given).resolve().parents and given.exists()
        outer = repository() / given
        return outer if not own and outer.exists() else given
    except (OSError, ValueError, RuntimeError) as error:  # too long, with a zero byte, of an unknown user
        raise LooplineError(f"{path[:60]!r} is no path: {error}"[:200]) from error


def model(name: str, path: Path = PARAMS) -> tuple[Settings, ModelSettings]:
    """The settings and the part of them that is `models.<name>`."""
    settings = load(path)
    if name not in settings.models:
        raise LooplineError(f"no model {name!r} in {path}: there are {', '.join(settings.models)}")
    return settings, settings.models[name]
