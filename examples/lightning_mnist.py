"""Handwritten digits with Lightning: the optimizer is a name, and its device a callback.

    spu-server serve --listen unix:/tmp/spu.sock
    python examples/lightning_mnist.py --spu unix:/tmp/spu.sock
    python examples/lightning_mnist.py --optimizer adam

``--resume FILE`` goes on from a checkpoint that Lightning has written.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from host_client.integrations.lightning import DeviceSession
from host_client.optimizers import make_optimizer
from spu_lab.tasks.mnist import mnist
from spu_lab.tasks.task import Task

HYPERPARAMETERS: dict[str, dict[str, Any]] = {
    "tngd": {"lr": 0.01, "damping": 0.01, "analog_time": 50.0},
    "ngd-cg": {"lr": 0.01, "damping": 0.01},
    "ngd-woodbury": {"lr": 0.01, "damping": 0.01},
    "kfac": {"lr": 1.0, "damping": 0.01, "curvature_every": 10, "trust_region": 0.001},
    "adam": {"lr": 0.001},
    "sgd": {"lr": 0.1},
}


class Classifier(pl.LightningModule):
    """A network and its loss.

    Args:
        network: gives logits.
        criterion: the loss, as a module: the curvature is captured when it is called.
        optimizer: name of the method.
        hyperparameters: its own.
    """

    def __init__(self, network: nn.Module, criterion: nn.Module, optimizer: str, **hyperparameters: Any) -> None:
        super().__init__()
        self.network, self.criterion = network, criterion
        self.optimizer, self.hyperparameters = optimizer, hyperparameters

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The optimizer of that name, on the session that the callback has opened."""
        session = DeviceSession.of(self.trainer)
        return make_optimizer(self.optimizer, self.network, self.criterion, session=session, **self.hyperparameters)

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        """The mean loss of a batch."""
        images, labels = batch
        loss: Tensor = self.criterion(self.network(images), labels)
        self.log("loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        """Return the fraction of digits that are classified correctly."""
        images, labels = batch
        self.log("accuracy", (self.network(images).argmax(1) == labels).float().mean(), prog_bar=True)


def loaders(task: Task, batch_size: int) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Training and test data in batches."""
    sets = [TensorDataset(task.prepare(part.inputs), part.targets) for part in (task.train, task.test)]
    return DataLoader(sets[0], batch_size, shuffle=True), DataLoader(sets[1], 1000)


def main(arguments: Sequence[str] | None = None) -> pl.Trainer:
    """Train and test; the trainer, with its metrics."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--optimizer", choices=sorted(HYPERPARAMETERS), default="tngd")
    parser.add_argument("--spu", default="inproc:", help="unix:PATH or HOST:PORT of a daemon, or inproc:")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--train-size", type=int, default=10_000)
    parser.add_argument("--test-size", type=int, default=10_000)
    parser.add_argument("--out", default="results/lightning", help="folder for checkpoints and metrics")
    parser.add_argument("--resume", help="a checkpoint to go on from")
    given = parser.parse_args(arguments)

    pl.seed_everything(0)
    task = mnist(given.train_size, given.test_size)
    module = Classifier(task.network(), task.criterion, given.optimizer, **HYPERPARAMETERS[given.optimizer])
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=given.epochs,
        callbacks=[DeviceSession(given.spu)] if given.optimizer == "tngd" else [],
        default_root_dir=given.out,
        logger=pl.loggers.CSVLogger(given.out),
    )
    trainer.fit(module, *loaders(task, given.batch_size), ckpt_path=given.resume)
    return trainer


if __name__ == "__main__":
    main()
