"""The detector's network, built by ultralytics from a YAML. No other module imports ultralytics (AGPL-3.0).

Only the network and its loss come from there. Training loop, augmentation, suppression and export are Loopline's own, so nothing
calls home, downloads a font or needs torchvision's compiled operators.
"""

from __future__ import annotations

import copy
import os
import pickle
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

os.environ["YOLO_VERBOSE"] = "False"  # read at import, like the folder of its settings
os.environ["ULTRALYTICS_SAFE_LOAD"] = "true"  # of a pickle, only classes of ultralytics and torch are made
os.environ["YOLO_AUTOINSTALL"] = "false"  # what a checkpoint asks for is not installed
os.environ.setdefault("YOLO_CONFIG_DIR", str(Path(".loopline").resolve()))

import torch

# At import ultralytics asks for the version of torchvision. The lock leaves that package out: nothing here uses it, and one that was
# built for another torch fails at import.
with patch("importlib.metadata.version", lambda name: "0.0" if name == "torchvision" else version(name)):
    from ultralytics.nn import tasks as ultralytics_tasks
    from ultralytics.nn.distill_model import DistillationModel
    from ultralytics.nn.modules.head import Detect, v10Detect
    from ultralytics.nn.tasks import DetectionModel, load_checkpoint, yaml_model_load
    from ultralytics.utils.tal import make_anchors

from loopline.errors import LooplineError
from loopline.settings import located
from loopline.tasks import packaged

if TYPE_CHECKING:
    from loopline.tasks.spec import ImageInput

GAINS = {"box": 7.5, "cls": 0.5, "dfl": 1.5}  # weights of the loss's parts: ultralytics' defaults
# ultralytics' .03 suits trainings of many thousand steps. In a few hundred steps the running statistics lag so far behind
# that the average precision is a third lower.
BATCH_NORM_MOMENTUM = 0.1
ACTIVATIONS = {"silu": "torch.nn.SiLU()", "relu": "torch.nn.ReLU()"}
Raw = dict[str, Any]
BROKEN = (
    TypeError,
    ValueError,
    RuntimeError,
    KeyError,
    AttributeError,
    AssertionError,
)  # raised for files that do not fit


def architecture(name: str, activation: str = "silu") -> dict[str, Any]:
    """Return the layers of `name`: a YAML that ultralytics ships (`yolo11n.yaml`; the letter is the size), or any YAML's path."""
    try:
        if "://" in name:
            raise FileNotFoundError("addresses are not read")
        layers: dict[str, Any] = yaml_model_load(str(located(name)))
    except FileNotFoundError as error:
        raise LooplineError(
            f"architecture: there is no {name!r}. Give a YAML that ultralytics knows, such as yolo11n.yaml, or a path to one"
        ) from error
    del layers["yaml_file"]  # a path of this machine
    return layers | {"activation": ACTIVATIONS[activation]}


def build(layers: dict[str, Any], classes: int, shape: ImageInput) -> DetectionModel:
    """Return a network of `layers` with random weights. Raises LooplineError if it is not a detector or `shape` does not fit."""
    network = DetectionModel(copy.deepcopy(layers) | {"nc": classes}, ch=shape.channels, verbose=False)
    head = network.model[-1]
    if type(head) not in (Detect, v10Detect):
        raise LooplineError(f"architecture: its last layer is {type(head).__name__}, a detector needs Detect")
    step = int(network.stride.max())
    if shape.height % step or shape.width % step:
        raise LooplineError(f"input: {shape.width}x{shape.height} does not fit, both sides must be multiples of {step}")
    network.args = SimpleNamespace(**GAINS)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = BATCH_NORM_MOMENTUM
    return network


def start_from(network: DetectionModel, pretrained: str) -> None:
    """Load those tensors of `pretrained` that fit, a .safetensors of Loopline or a .pt of ultralytics.

    A head for other classes stays as it is. Raises LooplineError if fewer than half of the tensors fit, or if the file cannot be read.
    """
    from safetensors.torch import load

    path = located(pretrained)
    if not path.exists():
        raise LooplineError(f"pretrained: there is no file {pretrained!r}. Download the checkpoint and give its path")
    tensors = load(path.read_bytes()) if path.suffix == ".safetensors" else _unpickled(path)[0].state_dict()
    own = network.state_dict()
    tensors = {name.removeprefix("network."): tensor for name, tensor in tensors.items()}
    fitting = {name: tensor for name, tensor in tensors.items() if name in own and own[name].shape == tensor.shape}
    if len(fitting) < len(own) / 2:
        raise LooplineError(
            f"pretrained: only {len(fitting)} of {len(own)} tensors of {pretrained!r} fit this architecture"
        )
    network.load_state_dict(fitting, strict=False)


def _unpickled(path: Path) -> tuple[DetectionModel, Raw]:
    """Return the network in a .pt and the rest of the file. Raises LooplineError if ultralytics did not write it.

    A pickle can run code. ultralytics' list of known classes, which the environment above demands, lets none of it run.
    """
    if not (ultralytics_tasks.SAFE_LOAD and ultralytics_tasks._SafeLoad.SUPPORTED):
        raise LooplineError(
            f"{path}: this version of ultralytics or torch cannot open a .pt without running code in it"
        )
    try:
        network, rest = load_checkpoint(path)
    except (*BROKEN, ImportError, OSError, EOFError, pickle.UnpicklingError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise LooplineError(f"{path} cannot be read as a .pt of ultralytics ({reason})") from error
    if not isinstance(network, DetectionModel):
        raise LooplineError(
            f"{path} holds a {type(network).__name__}: only detectors with axis-aligned boxes can be used"
        )
    if type(network.model[-1]) not in (Detect, v10Detect):
        raise LooplineError(f"{path} ends with {type(network.model[-1]).__name__}: only plain detectors can be used")
    if rest.get("modelopt"):
        raise LooplineError(f"{path} holds quantized weights: give the checkpoint from before its quantization")
    return network, rest


def finished(source: str, expected: str | None = None) -> tuple[DetectionModel, int, str]:
    """Return the detector in a .pt of ultralytics, the side in pixels that it was trained with, and the file's sha256.

    expected: that sha256; None for any. Raises LooplineError if it cannot be used.
    """
    path = located(source)
    if path.suffix != ".pt" or not path.is_file():
        raise LooplineError(f"adopt: {source!r} is no file that ends in .pt, as ultralytics writes it")
    digest = packaged.sha256(path)
    if expected and digest != expected:
        raise LooplineError(f"adopt: {source!r} has sha256 {digest}, but train.weights_sha256 is {expected}")
    network, rest = _unpickled(path)
    side = (rest.get("train_args") or {}).get("imgsz") or 640
    channels = next(network.parameters()).shape[1]
    if channels != 3:
        raise LooplineError(
            f"adopt: {source!r} takes images with {channels} channels: only those with 3 can be adopted"
        )
    return network, int(max(side) if isinstance(side, list | tuple) else side), digest


def adopt(source: str, labels: Sequence[str], shape: ImageInput, expected: str | None) -> tuple[DetectionModel, Raw]:
    """Return a finished detector with its classes in the order of `labels`, and its layers. Raises LooplineError if they differ."""
    source_network, _, _ = finished(source, expected)
    given = source_network.names
    names = [
        str(name) for name in (given if isinstance(given, list | tuple) else (given[key] for key in sorted(given)))
    ]
    if sorted(names) != sorted(labels):
        raise LooplineError(
            f"adopt: {source} has the classes {', '.join(names[:10])}, the data have {', '.join(labels[:10])}: "
            "give both the same names, in the labels of the data or in `names` of the .pt"
        )
    layers = {key: value for key, value in source_network.yaml.items() if key not in ("yaml_file", "ch", "channels")}
    layers.setdefault("activation", ACTIVATIONS["silu"])
    try:
        network = build(layers, len(labels), shape)
        network.load_state_dict(source_network.state_dict())
    except BROKEN as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise LooplineError(f"adopt: {source!r} does not fit the layers that it describes ({reason})") from error
    order = [names.index(label) for label in labels]
    head = network.model[-1]
    for branch in (getattr(head, name, None) or () for name in ("cv3", "one2one_cv3")):
        for layer in branch:
            layer[-1].weight.data = layer[-1].weight.data[order]
            layer[-1].bias.data = layer[-1].bias.data[order]
    return network, layers


def _scaled(image: torch.Tensor) -> torch.Tensor:
    return image.permute(0, 3, 1, 2).float() / 255


class Detector(torch.nn.Module):
    """The network from uint8 images (n, h, w, c) to boxes (n, a, 4) in pixels, scores (n, classes, a) and embedding (n, d).

    The embedding is a linear map of the deepest features, averaged over the image.
    """

    anchors: torch.Tensor
    strides: torch.Tensor
    bins: torch.Tensor

    def __init__(self, network: DetectionModel, shape: ImageInput, embedding: int) -> None:
        super().__init__()
        self.network = network
        head = network.model[-1]
        grids = [torch.zeros(1, 1, int(shape.height // s), int(shape.width // s)) for s in head.stride]
        anchors, strides = make_anchors(grids, head.stride, 0.5)
        self.register_buffer("anchors", anchors, persistent=False)
        self.register_buffer("strides", strides, persistent=False)
        self.register_buffer("bins", torch.arange(head.reg_max, dtype=torch.float32), persistent=False)
        deepest = head.cv2[-1][0].conv.in_channels
        self.embedding = torch.nn.Linear(deepest, embedding)
        torch.nn.init.zeros_(self.embedding.weight)
        torch.nn.init.zeros_(self.embedding.bias)

    def raw(self, image: torch.Tensor) -> Raw:
        """Return what the loss takes: `boxes` and `scores` before decoding, and the feature maps `feats`."""
        self.network.model[-1].training = True  # so that the head does not decode; its layers do not change
        outputs: Raw = self.network(_scaled(image))
        return outputs

    def decode(self, raw: Raw) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return boxes, scores and features from the result of `raw`."""
        outputs = raw.get("one2many", raw)  # newer heads have two branches: this one expects suppression
        n, _, count = outputs["boxes"].shape
        sides = outputs["boxes"].view(n, 4, -1, count)  # for each side a distribution over whole strides
        distance = (sides.softmax(2) * self.bins[:, None]).sum(2) if len(self.bins) > 1 else sides[:, :, 0]
        left_top, right_bottom = distance.transpose(1, 2).split(2, 2)
        boxes = torch.cat([self.anchors - left_top, self.anchors + right_bottom], 2) * self.strides
        return boxes, outputs["scores"].sigmoid(), outputs["feats"][-1].mean((2, 3))

    def loss(self, raw: Raw, targets: list[torch.Tensor], size: tuple[int, int]) -> torch.Tensor:
        """Return the sum over the batch. targets: for each image (k, 5), class and corners in input pixels; size: width, height."""
        loss: torch.Tensor = self.network.loss(self._batch(targets, size), raw)[0].sum()
        return loss

    def distillation(self, teacher: Detector, gain: float) -> DistillationModel:
        """Return this network with a teacher for its training. gain: weight of the distance between the feature maps in the loss.

        Raises LooplineError if the teacher's feature maps have other strides.
        """
        strides = [[int(stride) for stride in network.stride] for network in (self.network, teacher.network)]
        if strides[0] != strides[1]:
            raise LooplineError(
                f"train.teacher: its feature maps have the strides {strides[1]}, those of this model have {strides[0]}: choose "
                "architectures of one family, such as yolo11n.yaml and yolo11s.yaml"
            )
        # It asks for the number of channels of each map by an image of this size.
        self.network.args = SimpleNamespace(**GAINS, dis=gain, imgsz=int(self.network.stride.max()))
        return DistillationModel(teacher.network.to(self.anchors.device), self.network)

    def taught_loss(
        self, distillation: DistillationModel, image: torch.Tensor, targets: list[torch.Tensor]
    ) -> torch.Tensor:
        """Return the loss of a batch of uint8 images (n, h, w, c) and the distance to the teacher's feature maps, summed."""
        self.network.model[-1].training = True
        _, height, width, _ = image.shape
        batch = self._batch(targets, (width, height)) | {"img": _scaled(image)}
        loss: torch.Tensor = distillation.loss(batch)[0].sum()
        return loss

    def _batch(self, targets: list[torch.Tensor], size: tuple[int, int]) -> dict[str, torch.Tensor]:
        """Return the targets as ultralytics' loss takes them."""
        count = torch.tensor([len(target) for target in targets])
        joined = torch.cat(targets)
        corners = joined[:, 1:] / torch.tensor([*size, *size])
        middle, extent = (corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]
        batch = {
            "batch_idx": torch.arange(len(targets)).repeat_interleave(count).float(),
            "cls": joined[:, :1],
            "bboxes": torch.cat([middle, extent], 1),
        }
        return {key: value.to(self.anchors.device) for key, value in batch.items()}

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return boxes, scores and embedding."""
        boxes, scores, features = self.decode(self.raw(image))
        return boxes, scores, self.embedding(features)

    def fused(self) -> Detector:
        """Fold batch normalisation into the convolutions, in place, and return itself. For inference only."""
        self.network.end2end = False
        self.network.fuse(verbose=False)
        return self
