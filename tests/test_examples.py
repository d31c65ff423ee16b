"""The examples, and checkpoints as Lightning and the Trainer write them, through a real daemon."""

from __future__ import annotations

import re
import subprocess
import sys
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from host_client import connect
from host_client.optimizers import LevenbergMarquardt
from spu_lab.tasks import mnist as mnist_task
from spu_link.errors import DeviceUnavailable
from tests.daemon import Daemon
from tests.host_client.optimizers.training import flat

pytestmark = [
    pytest.mark.filterwarnings("ignore:`?isinstance.treespec, LeafSpec.:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:The number of training batches.*"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed from.*"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`.*"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning"),
]


@pytest.fixture(scope="module")
def lightning_mnist() -> ModuleType:
    return import_module("examples.lightning_mnist")


@pytest.fixture(scope="module")
def transformers_trainer() -> ModuleType:
    return import_module("examples.transformers_trainer")


@pytest.fixture
def striped_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of MNIST, images with two bright rows where the label says."""
    labels = np.arange(70_000, dtype=np.uint8) % 10
    pixels = np.zeros((70_000, 28, 28), dtype=np.uint8)
    for number, label in enumerate(labels[:600]):
        for place in (number, 60_000 + number):
            pixels[place, 2 * label + 3 : 2 * label + 5] = 200
    monkeypatch.setattr(mnist_task, "digits", lambda: (pixels, labels))


SIZES = ["--train-size", "200", "--test-size", "100", "--batch-size", "20"]


@pytest.mark.usefixtures("striped_digits")
def test_lightning_trains_through_a_daemon_and_frees_it(
    lightning_mnist: ModuleType, free: Daemon, tmp_path: Path
) -> None:
    trainer = lightning_mnist.main(["--spu", free.address, *SIZES, "--epochs", "3", "--out", str(tmp_path)])
    assert float(trainer.callback_metrics["loss"]) < 1.5
    assert float(trainer.callback_metrics["optimizer/updates"]) == 30
    with connect(free.address) as spu, spu.session():
        pass


@pytest.mark.usefixtures("striped_digits")
def test_another_name_is_another_method_without_a_device(lightning_mnist: ModuleType, tmp_path: Path) -> None:
    trainer = lightning_mnist.main(["--optimizer", "adam", *SIZES, "--out", str(tmp_path)])
    assert type(trainer.optimizers[0]) is torch.optim.Adam
    assert "optimizer/updates" not in trainer.callback_metrics


class Toy(nn.Module):
    """A small network that keeps its losses."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layers(x)
        return logits


def toy_fit(
    example: ModuleType,
    address: str,
    folder: Path,
    *,
    epochs: int,
    resume: str | None = None,
    accumulate: int = 1,
    device: dict[str, Any] | None = None,
    **hyperparameters: Any,
) -> Any:
    from lightning.pytorch import Trainer
    from torch.utils.data import DataLoader, TensorDataset

    inputs = torch.randn(40, 6, generator=torch.Generator().manual_seed(1))
    options = {"lr": 0.3, "damping": 0.1, "analog_time": 5.0, "momentum": 0.5, **hyperparameters}
    module = example.Classifier(Toy(), nn.CrossEntropyLoss(), "tngd", **options)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        callbacks=[example.DeviceSession(address, **(device or {}))],
        default_root_dir=folder,
        accumulate_grad_batches=accumulate,
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=False,
    )
    batches = DataLoader(TensorDataset(inputs, inputs[:, :3].argmax(1)), 10)
    trainer.fit(module, batches, ckpt_path=resume, weights_only=True)
    return module, trainer


def test_a_fit_that_lightning_resumes_ends_where_one_without_a_break_ends(
    lightning_mnist: ModuleType, tmp_path: Path
) -> None:
    fit = partial(toy_fit, lightning_mnist, "inproc:", device={"clock": "stepped"}, noise=1e-3)
    through, _ = fit(tmp_path / "a", epochs=3)
    _, trainer = fit(tmp_path / "b", epochs=2)
    checkpoint = trainer.checkpoint_callback.best_model_path
    resumed, trainer = fit(tmp_path / "c", epochs=3, resume=checkpoint)
    assert trainer.global_step == 12
    assert torch.equal(flat(resumed), flat(through))


def test_gradients_that_lightning_adds_up_are_one_step(lightning_mnist: ModuleType, tmp_path: Path) -> None:
    _, trainer = toy_fit(lightning_mnist, "inproc:", tmp_path, epochs=3, accumulate=2)
    assert trainer.optimizers[0].counts["updates"] == 6
    assert float(trainer.callback_metrics["loss"]) < 1.0


def test_damping_adapts_under_lightning(lightning_mnist: ModuleType, tmp_path: Path) -> None:
    rule = LevenbergMarquardt(every=2)
    _, trainer = toy_fit(lightning_mnist, "inproc:", tmp_path, epochs=2, adapt_damping=rule)
    counts = trainer.optimizers[0].counts
    assert counts["updates"] == 8
    assert counts["damping shrunk"] + counts["damping grown"] >= 2


def test_a_fit_that_fails_leaves_the_device_free(lightning_mnist: ModuleType, free: Daemon, tmp_path: Path) -> None:
    def explode(*_: object) -> None:
        raise RuntimeError("the data is gone")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lightning_mnist.Classifier, "training_step", explode)
        with pytest.raises(RuntimeError, match="the data is gone"):
            toy_fit(lightning_mnist, free.address, tmp_path, epochs=1)
    with connect(free.address) as spu, spu.session():
        pass


def test_without_a_daemon_a_fit_says_so(lightning_mnist: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(DeviceUnavailable, match="spu-server serve"):
        toy_fit(lightning_mnist, f"unix:{tmp_path}/nobody", tmp_path, epochs=1)


def test_a_session_is_there_during_a_fit_only(lightning_mnist: ModuleType) -> None:
    from lightning.pytorch import Trainer

    callback = lightning_mnist.DeviceSession("inproc:")
    with pytest.raises(RuntimeError, match=r"open while trainer\.fit runs"):
        lightning_mnist.DeviceSession.of(Trainer(accelerator="cpu", callbacks=[callback], logger=False))
    assert lightning_mnist.DeviceSession.of(Trainer(accelerator="cpu", logger=False)) is None


def test_the_trainer_of_transformers_learns_through_a_daemon(
    transformers_trainer: ModuleType, free: Daemon, tmp_path: Path
) -> None:
    options = [
        "--steps",
        "40",
        "--save-steps",
        "40",
        "--micro-batches",
        "2",
        "--batch-size",
        "16",
    ]
    metrics = transformers_trainer.main(["--spu", free.address, *options, "--out", str(tmp_path)])
    assert metrics["eval_accuracy"] > 0.8


def test_a_run_that_the_trainer_resumes_ends_where_one_without_a_break_ends(
    transformers_trainer: ModuleType, stepped: Daemon, tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    def run(folder: str, *options: str) -> dict[str, Tensor]:
        out = ["--out", str(tmp_path / folder)]
        transformers_trainer.main(
            ["--spu", stepped.address, "--steps", "12", "--save-steps", "6", "--batch-size", "8", *out, *options]
        )
        return load_file(tmp_path / folder / "checkpoint-12" / "model.safetensors")

    through = run("a")
    resumed = run("b", "--resume", str(tmp_path / "a" / "checkpoint-6"))
    assert through.keys() == resumed.keys()
    for name, parameter in through.items():
        assert torch.equal(parameter, resumed[name]), name


def test_the_examples_are_imported_without_a_traceback() -> None:
    root = Path(__file__).parent.parent
    names = sorted(path.stem for path in (root / "examples").glob("*.py") if path.stem != "__init__")
    code = f"import {', '.join(f'examples.{name}' for name in names)}"
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


def test_the_page_shows_what_the_examples_do() -> None:
    root = Path(__file__).parent.parent
    examples = [path.read_text() for path in (root / "examples").glob("*.py")]
    blocks = re.findall(r"^```py\n(.*?)^```$", (root / "docs" / "integrations.md").read_text(), re.M | re.S)
    assert blocks
    for block in blocks:
        assert any(dedented(block) in dedented(text) for text in examples), block


def test_the_page_has_the_functions_of_the_program_that_measures_its_recipe() -> None:
    root = Path(__file__).parent.parent
    program = (root / "examples" / "choose_settings.py").read_text()
    page = (root / "docs" / "choosing.md").read_text()
    for name in ("largest_eigenvalue", "sweep", "choose"):
        (function,) = re.findall(rf"^def {name}\(.*?(?=\n\n\n)", program, re.M | re.S)
        assert function in page, name


def dedented(text: str) -> str:
    """Its lines without what they begin and end with."""
    return "\n".join(line.strip() for line in text.strip().splitlines())
