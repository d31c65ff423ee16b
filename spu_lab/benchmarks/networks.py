"""Networks to time training steps on, each with one batch and a loss.

All but the reference network, which sees real digits, get random numbers of the right shapes: arithmetic takes the same
time on them. Weights are random too, but for the pretrained encoder's; sizes are those of networks that people train.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spu_lab.benchmarks.timing import log
from spu_lab.tasks.encoder import encoder_folder
from spu_lab.tasks.mnist import mnist
from spu_lab.tasks.task import Task
from spu_lab.tasks.wheels import SourceFailed


@dataclass(frozen=True)
class Network:
    """A network, a criterion and a batch.

    Attributes:
        model: in training mode.
        criterion: cross-entropy of the model's outputs.
        inputs: one batch, (b, …).
        targets: class indices, shape (b,).
    """

    model: nn.Module
    criterion: nn.Module
    inputs: Tensor
    targets: Tensor

    def loss(self) -> Tensor:
        """One training forward pass, up to the loss."""
        value: Tensor = self.criterion(self.model(self.inputs), self.targets)
        return value

    def trained(self) -> list[nn.Parameter]:
        """The parameters that require grad."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    @property
    def parameters(self) -> int:
        """N, the number of trained parameters."""
        return sum(parameter.numel() for parameter in self.trained())


def reference(batch: int = 64, task: Callable[[], Task] = mnist) -> Network:
    """The reference CNN on the first batch of MNIST; N = 105,866, 10 classes."""
    data = task()
    return Network(data.build(0), data.criterion, *next(iter(data.batches(batch, seed=0))))


def mlp(batch: int = 64) -> Network:
    """Four linear layers 784 → 1024 → 1024 → 1024 → 10; N = 2.9 million."""
    torch.manual_seed(0)
    widths = (784, 1024, 1024, 1024, 10)
    layers: list[nn.Module] = []
    for d_in, d_out in pairwise(widths):
        layers += [nn.Linear(d_in, d_out), nn.ReLU()]
    return _random(nn.Sequential(*layers[:-1]), torch.rand(batch, 784), classes=10)


def resnet(batch: int = 32) -> Network:
    """ResNet-20 with GroupNorm in place of BatchNorm on 32 × 32 images, 10 classes; N = 0.27 million."""
    torch.manual_seed(0)
    stages = [nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.GroupNorm(8, 16), nn.ReLU()]
    channels = 16
    for width, stride in ((16, 1), (32, 2), (64, 2)):
        for number in range(3):
            stages.append(ResidualBlock(channels, width, stride if number == 0 else 1))
            channels = width
    stages += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)]
    return _random(nn.Sequential(*stages), torch.rand(batch, 3, 32, 32), classes=10)


def transformer(batch: int = 32) -> Network:
    """Encoder of four layers of width 128 on 32 tokens, 4 classes; N = 0.92 million, 0.13 of them embeddings."""
    torch.manual_seed(0)
    return _random(EncoderClassifier(), torch.randint(1000, (batch, 32)), classes=4)


def lora(batch: int = 16) -> Network:
    """LoRA (r = 8) on queries, keys, values and outputs of pretrained MiniLM, and a classifier on it, 4 classes.

    Six layers of width 384 with 12 heads, 32 tokens; 10.6 million frozen parameters in addition to the
    embeddings, N = 149,000. Where the pretrained weights cannot be had, they are random ones of the same shapes, and
    the log says so.
    """
    # peft asks transformers for something by its old name.
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
    from peft import LoraConfig, get_peft_model
    from transformers import BertConfig, BertForSequenceClassification
    from transformers.utils import logging

    logging.set_verbosity_error()  # that the classifier is new is no news
    logging.disable_progress_bar()
    torch.manual_seed(0)
    try:
        encoder = BertForSequenceClassification.from_pretrained(encoder_folder(), num_labels=4)
    except (SourceFailed, OSError) as error:
        log.warning("LoRA is timed on an encoder with random weights: %s", error)
        config = BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
        config.num_labels = 4
        encoder = BertForSequenceClassification(config)
    targets = ["query", "key", "value", "attention.output.dense"]
    adapters = LoraConfig(r=8, lora_alpha=32, target_modules=targets, task_type="SEQ_CLS")
    adapted = get_peft_model(encoder, adapters)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02)  # as after some steps: peft starts them at zero, where no gradient passes
    return _random(LogitsOf(adapted), torch.randint(encoder.config.vocab_size, (batch, 32)), classes=4)


NETWORKS: dict[str, Callable[..., Network]] = {
    "reference": reference,
    "mlp": mlp,
    "resnet": resnet,
    "transformer": transformer,
    "lora": lora,
}
"""By name; each takes the number of samples in a batch."""

BATCHES = {"reference": 64, "mlp": 64, "resnet": 32, "transformer": 32, "lora": 16}
"""Samples in a batch of each."""

TITLES = {
    "reference": "reference CNN, N = 0.11 million",
    "mlp": "4-layer MLP, N = 2.9 million",
    "resnet": "ResNet-20 with GroupNorm on 32 × 32 images, N = 0.27 million",
    "transformer": "transformer encoder of 4 layers, N = 0.93 million",
    "lora": "LoRA on pretrained MiniLM, 32 tokens, N = 0.15 million",
}
"""Descriptions for the ratios of each."""


class ResidualBlock(nn.Module):
    """Two 3 × 3 convolutions with GroupNorm, and a shortcut in parallel, which strides and pads channels with zeros."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False)
        self.first_norm = nn.GroupNorm(8, width)
        self.second = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.second_norm = nn.GroupNorm(8, width)
        self.stride, self.added = stride, width - channels

    def forward(self, x: Tensor) -> Tensor:
        """Images (b, channels, h, w) to (b, width, h / stride, w / stride)."""
        y = self.second_norm(self.second(F.relu(self.first_norm(self.first(x)))))
        shortcut = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.added))
        return F.relu(y + shortcut)


class EncoderClassifier(nn.Module):
    """Token and position embeddings, `nn.TransformerEncoder`, the mean over tokens, a linear layer."""

    def __init__(self, tokens: int = 1000, length: int = 32, width: int = 128, classes: int = 4) -> None:
        super().__init__()
        self.embedding = nn.Embedding(tokens, width)
        self.position = nn.Embedding(length, width)
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 4, norm=nn.LayerNorm(width), enable_nested_tensor=False)
        self.head = nn.Linear(width, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Token indices (b, s) to logits (b, classes)."""
        places = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        logits: Tensor = self.head(self.encoder(self.embedding(tokens) + self.position(places)).mean(1))
        return logits


class LogitsOf(nn.Module):
    """A model of `transformers`, reduced to its logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        """Token indices (b, s) to logits (b, classes)."""
        logits: Tensor = self.model(input_ids=tokens).logits
        return logits


def _random(model: nn.Module, inputs: Tensor, *, classes: int) -> Network:
    return Network(model.train(), nn.CrossEntropyLoss(), inputs, torch.randint(classes, (len(inputs),)))
