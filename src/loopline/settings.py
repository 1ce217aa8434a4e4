"""Read `params.yaml` into frozen, typed settings. An unknown key is an error that names the key. Nothing else reads the file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Union

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, create_model, model_validator

from loopline.errors import LooplineError
from loopline.tasks.plugins import BUILT_IN, part
from loopline.tasks.search_space import Tune
from loopline.tasks.spec import model_name
from loopline.tasks.teacher import ClassifierTeacher

LEAST_OF_A_SHARD = 2  # samples, for the statistics of batch normalisation
Fraction = Annotated[float, Field(ge=0, le=1)]
PARAMS = Path("params.yaml")
# Folders of a repository in which retrainings, drills and DVC's experiments keep their working copies
HIDDEN = (".loopline", ".dvc")


class Strict(BaseModel):
    """The base of all settings: frozen, and refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class SampleGroup(Strict):
    """The group of a sample: what the regular expression `path` captures in its path, or its cell in a table's `column`."""

    path: str | None = None
    column: str | None = Field(default=None, min_length=1)

    @model_validator(mode="after")
    def _path_with_a_capture_or_column(self) -> SampleGroup:
        if (self.path is None) == (self.column is None):
            raise ValueError("give either path or column")
        try:
            captures = re.compile(self.path or "()").groups
        except re.error as error:
            raise ValueError(f"path is not a regular expression: {error}") from error
        if not captures:
            raise ValueError("path captures nothing: put round brackets around the part that names the group")
        return self

    def of(self, path: str, cell: str | None) -> str | None:
        """Return the group of a sample from its path or its cell of the column, None if it has no group."""
        if self.path is None:
            return (cell or "").strip() or None
        match = re.search(self.path, path)
        return "/".join(capture or "" for capture in match.groups()) if match else None


class SplitSettings(Strict):
    """Shares of the samples in validation and test. A hash of a sample's content, or of its group, assigns it.

    A published val or test split is kept. Published training samples fill the splits that their source does not publish.
    """

    seed: int
    val: Fraction
    test: Fraction
    group: SampleGroup | None = None

    @property
    def column(self) -> str | None:
        """The table column that names the samples' groups, None if no column does."""
        return self.group.column if self.group else None


class Expectations(Strict):
    """Limits that Great Expectations checks in the manifest before a model is trained. Those below are for some tasks only."""

    min_samples: int = Field(ge=1)
    max_set_aside: Fraction  # share of the samples that ingest may set aside


class ClassLimits(Expectations):
    """Limits for a task with classes."""

    min_per_class: int = Field(ge=1)  # in the training split
    max_imbalance: float = Field(ge=1)  # samples of the largest class / of the smallest, training split


class ImageLimits(Expectations):
    """Limits for images, in pixels."""

    min_side: int = Field(default=1, ge=1)
    max_side: int = Field(default=8192, ge=1)


class TextLimits(Expectations):
    """Limits for texts."""

    max_characters: int = Field(default=10_000, ge=1)


class ImageShape(Strict):
    """Height and width in pixels to which every image is resized, and its number of channels."""

    height: int = Field(ge=8)
    width: int = Field(ge=8)
    channels: Literal[1, 3]


class Fit(Strict):
    """Settings that every training loop shares.

    shards: parts of a batch, which change the result; 1 is the loop without parts. workers: processes that share the shards, which
    change no result.
    """

    epochs: int = Field(ge=1)
    patience: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    learning_rate: float = Field(gt=0)
    pretrained: str | None = None
    shards: int = Field(default=1, ge=1, le=64)
    workers: int = Field(default=1, ge=1)

    @model_validator(mode="after")
    def _workers_share_shards(self) -> Fit:
        for name, count in (("shards", self.shards), ("workers", self.workers)):
            if count & (count - 1):
                raise ValueError(f"{name} must be 1, 2, 4, 8, ...: sums are made by a binary tree")
        if self.workers > self.shards:
            raise ValueError(f"workers: {self.workers} processes cannot share {self.shards} shards: raise shards")
        if self.batch_size < LEAST_OF_A_SHARD * self.shards and self.shards > 1:
            raise ValueError(
                f"shards: a batch of {self.batch_size} is too small: each of {self.shards} needs {LEAST_OF_A_SHARD} samples"
            )
        return self


class Adopt(Strict):
    """In place of a training: the finished model at this path is taken as it is, see `loopline adopt`.

    weights_sha256: of its weights, so that others at the same path are noticed.
    """

    adopt: str = Field(min_length=1)
    weights_sha256: str | None = None


def train_kind(train: Any) -> str:
    """Which of the two the settings of a training are: `adopt` for `Adopt`, else `fit`. It tells pydantic which class to use."""
    return "adopt" if isinstance(train, Adopt) or (isinstance(train, dict) and "adopt" in train) else "fit"


class ClassifierFit(Fit):
    """Settings that the trainings of image and text classifiers share."""

    teacher: ClassifierTeacher | None = None
    weight_decay: float = Field(ge=0)
    label_smoothing: Fraction
    class_weights: bool


class Export(Strict):
    """tolerance: largest allowed difference between torch and FP32 ONNX, in the unit of the answer. embedding: its size."""

    tolerance: float = Field(gt=0)
    embedding: int = Field(ge=1, le=64)


class Quantize(Strict):
    """Conditions under which INT8 ships instead of FP32."""

    # auto: INT8 ships if it is as accurate, smaller and not clearly slower
    precision: Literal["auto", "fp32"] = "auto"
    calibration_samples: int = Field(ge=8)
    max_loss: Fraction  # INT8 ships only if the lower bound of (INT8 - FP32) is at least -max_loss
    tolerance: float = Field(gt=0)  # mean absolute difference allowed between FP32 and INT8, in the same unit
    methods: tuple[Literal["minmax", "entropy", "percentile"], ...] = ("minmax",)

    @model_validator(mode="before")
    @classmethod
    def _refuse_min_speedup(cls, content: Any) -> Any:
        if isinstance(content, dict) and "min_speedup" in content:
            raise ValueError(
                "min_speedup was removed because a second run could decide differently: delete it, and INT8 ships unless it is "
                "clearly slower; write precision: fp32 to ship FP32"
            )
        return content


class Evaluate(Strict):
    """What the model must reach on the test split."""

    floors: dict[str, float]  # metric name -> least value; the stage fails below it
    # true: the measured gain over the simple model must be above 0. "proven": the lower bound of its interval must be, too
    must_beat_simple: bool | Literal["proven"]
    # The labelled samples are too few to judge by: the model ships, and its card, the registry and servers say that no gate judged it
    unjudged: bool = False
    resamples: int = Field(default=1000, ge=100)


class Calibrate(Strict):
    """What counts as drift: see docs/drift.md."""

    bins: int = Field(ge=2)  # bins of equal mass for each signal
    # Chance that `windows` windows in a row of unchanged traffic raise any alarm
    false_alarms: float = Field(gt=0, lt=1)
    windows: int = Field(default=24, ge=1)
    least_samples: int = Field(default=50, ge=20)  # a window with fewer samples gets no verdict
    max_loss: Fraction = 0.025  # of estimated quality: a larger loss is harm, a smaller one is a notice
    streams: int = Field(default=250, ge=100)  # streams without drift that are simulated for each window size


class ModelSettings(Strict):
    """Settings of every model. Each task has a subclass that narrows `task`, `input`, `train` and `expectations`, see `tasks.base`.

    A limit in `expectations` that means nothing to the task is thus an unknown key.
    """

    task: str
    input: Strict
    train: Fit | Adopt
    dataset: str
    split: SplitSettings
    expectations: Expectations
    export: Export
    quantize: Quantize
    evaluate: Evaluate
    calibrate: Calibrate
    tune: Tune | None = None  # changes no output of the pipeline


class Promotion(Strict):
    """Conditions under which a challenger may replace the champion: see docs/gates.md."""

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
    """Return a Settings class in which each model has its task's class. Raises LooplineError on an unknown task."""
    models = raw.get("models") if isinstance(raw, dict) else None
    values = models.values() if isinstance(models, dict) else ()
    named = {model["task"] for model in values if isinstance(model, dict) and isinstance(model.get("task"), str)}
    kinds = tuple(part(name, "parameters").PARAMETERS for name in (*BUILT_IN, *sorted(named - {*BUILT_IN})))
    of_its_task: Any = Annotated[Union[kinds], Field(discriminator="task")]  # noqa: UP007 - known at run time only
    return create_model("Settings", __base__=Settings, models=(dict[ModelName, of_its_task], ...))


def read_yaml(path: Path) -> Any:
    """Return the content of a YAML file. Raises LooplineError if it is missing, unreadable or invalid."""
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
        lines = [f"  {_key(e['loc'])}: {e['msg']} (got {e['input']!r:.60})" for e in error.errors()]
        raise LooplineError(f"{path} has {len(lines)} wrong setting(s):\n" + "\n".join(lines)) from error


def _key(place: tuple[int | str, ...]) -> str:
    """Return the key that an error is about, without the names of the kinds among which pydantic chose."""
    words = list(place)
    if words[:1] == ["models"] and words[-1] != "[key]":
        del words[2:3]
        if words[2:3] == ["train"] and words[3:4] in (["adopt"], ["fit"]):
            del words[3]
    return ".".join(map(str, words))


def repository() -> Path:
    """Return the repository: the current folder, or the folder that it is a working copy of."""
    here = Path.cwd()
    outer = [folder for folder in here.parents if here.relative_to(folder).parts[0] in HIDDEN]
    return next((folder for folder in reversed(outer) if (folder / PARAMS).is_file()), here)


def located(path: str) -> Path:
    """Return the place of a path that params.yaml names. In a working copy, the path is looked up in the repository.

    A file of the working copy itself comes first. A path that does not exist is returned unchanged. Raises LooplineError if no
    file can have this path.
    """
    try:
        here, target = Path.cwd(), Path(path).expanduser()
        own = here in (here / target).resolve().parents and target.exists()
        outer = repository() / target
        return outer if not own and outer.exists() else target
    except (OSError, ValueError, RuntimeError) as error:  # too long, a zero byte, an unknown user
        raise LooplineError(f"{path[:60]!r} is not a valid path: {error}"[:200]) from error


def model(name: str, path: Path = PARAMS) -> tuple[Settings, ModelSettings]:
    """Return all settings, and those of `models.<name>`. Raises LooplineError on an unknown name."""
    settings = load(path)
    if name not in settings.models:
        raise LooplineError(f"no model {name!r} in {path}: there are {', '.join(settings.models)}")
    return settings, settings.models[name]
