"""A text classifier with the Trainer of transformers, whose optimizer is one by name.

    spu-server serve --listen unix:/tmp/spu.sock
    python examples/transformers_trainer.py --spu unix:/tmp/spu.sock
    python examples/transformers_trainer.py --optimizer adam

The encoder is small and starts from random weights, and the language is made up: a sentence is of the class whose token
occurs most often in it. For a model of one's own, `train` is what to keep.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import Dataset
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments, set_seed

from host_client import connect
from host_client.optimizers import make_optimizer

HYPERPARAMETERS: dict[str, dict[str, Any]] = {
    "tngd": {"lr": 0.1, "damping": 0.01, "analog_time": 20.0, "trust_region": 0.1},
    "ngd-cg": {"lr": 0.1, "damping": 0.01, "trust_region": 0.1},
    "ngd-woodbury": {"lr": 0.1, "damping": 0.01, "trust_region": 0.1},
    "adam": {"lr": 0.001},
    "sgd": {"lr": 0.1},
}
CLASSES, TOKENS, LENGTH = 3, 20, 12


class Sentences(Dataset[dict[str, Tensor]]):
    """Sentences of `LENGTH` tokens, each with more of one of the tokens 0 … `CLASSES` − 1 than of the others."""

    def __init__(self, count: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.labels = torch.randint(CLASSES, (count,), generator=generator)
        self.tokens = torch.randint(CLASSES, TOKENS, (count, LENGTH), generator=generator)
        places = torch.rand(count, LENGTH, generator=generator).argsort(1)[:, :3]
        self.tokens.scatter_(1, places, self.labels[:, None].expand(-1, 3))

    def __len__(self) -> int:
        """Return their number."""
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """One of them, as the model takes it."""
        return {"input_ids": self.tokens[index], "labels": self.labels[index]}


def encoder() -> nn.Module:
    """A BERT with 9,000 parameters."""
    config = BertConfig(
        vocab_size=TOKENS,
        hidden_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=LENGTH,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        num_labels=CLASSES,
    )
    return BertForSequenceClassification(config)


def train(
    model: nn.Module, optimizer: torch.optim.Optimizer, criterion: nn.Module, arguments: TrainingArguments
) -> Any:
    """The trainer, not yet started.

    The loss has to be the criterion that the optimizer was given, called as a module on the logits. Gradients are not
    clipped: the trust region bounds the step instead.
    """

    def loss(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        mean: Tensor = criterion(outputs["logits"], labels)
        # Of several micro-batches each one counts with its fraction of the samples.
        return mean if num_items_in_batch is None else mean * (len(labels) / num_items_in_batch)

    return Trainer(
        model=model,
        args=arguments,
        train_dataset=Sentences(512, seed=1),
        eval_dataset=Sentences(128, seed=2),
        compute_loss_func=loss,
        compute_metrics=lambda outcome: {
            "accuracy": float((outcome.predictions.argmax(1) == outcome.label_ids).mean())
        },
        optimizers=(optimizer, CosineAnnealingLR(optimizer, arguments.max_steps)),
    )


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Train and evaluate; the metrics."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--optimizer", choices=sorted(HYPERPARAMETERS), default="tngd")
    parser.add_argument("--spu", default="inproc:", help="unix:PATH or HOST:PORT of a daemon, or inproc:")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--save-steps", type=int, default=30)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--micro-batches", type=int, default=1, help="micro-batches whose gradients are added up")
    parser.add_argument("--out", default="results/transformers", help="folder for checkpoints")
    parser.add_argument("--resume", help="a checkpoint folder to go on from")
    given = parser.parse_args(arguments)

    set_seed(0)
    model, criterion = encoder(), nn.CrossEntropyLoss()
    settings = TrainingArguments(
        output_dir=given.out,
        max_steps=given.steps,
        save_steps=given.save_steps,
        per_device_train_batch_size=given.batch_size,
        gradient_accumulation_steps=given.micro_batches,
        max_grad_norm=0.0,
        use_cpu=True,
        report_to=[],
        logging_steps=10,
    )
    with ExitStack() as stack:
        session = None
        if given.optimizer == "tngd":
            session = stack.enter_context(stack.enter_context(connect(given.spu)).session(ttl=30.0))
        optimizer = make_optimizer(
            given.optimizer, model, criterion, session=session, **HYPERPARAMETERS[given.optimizer]
        )
        trainer = train(model, optimizer, criterion, settings)
        trainer.train(resume_from_checkpoint=given.resume)
        metrics: dict[str, float] = trainer.evaluate()
    return metrics


if __name__ == "__main__":
    print(main())
