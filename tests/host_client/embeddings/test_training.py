"""TNGD through devices in this process that are smaller than the network."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import nn

from host_client import NGD, TNGD, connect
from host_client.curvature import CurvatureTooLarge
from host_client.embeddings import embedding_of
from host_client.loop import NoOlderThan
from spu_link.errors import CapacityExceeded
from tests.host_client.embeddings.training import CELLS, ROWS, Training, digital

NAMES = list(CELLS)


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("name", NAMES)
def test_steps_are_those_of_the_digital_equivalent(name: str, every: int) -> None:
    embedding = embedding_of(name)
    assert embedding is not None
    with connect("inproc:", clock="stepped", cells=CELLS[name], embedding=name) as spu, spu.session() as session:
        training = Training(session, curvature_every=every)
        losses = training.steps(0, 6)
        counts = training.optimizer.counts
    assert losses[-1] < losses[0]
    torch.testing.assert_close(training.parameters, digital(embedding, 6, every=every), rtol=1e-6, atol=1e-8)
    assert (counts["uploads"], counts["kept"]) == (6, 6 - 6 // every)


def test_in_sample_space_the_steps_are_those_of_the_natural_gradient() -> None:
    with connect("inproc:", clock="stepped", cells=ROWS, embedding="sample") as spu, spu.session() as session:
        training = Training(session)
        training.steps(0, 6)
    exact = Training()
    exact.optimizer = NGD(exact.model, exact.criterion, lr=0.1, damping=0.1)  # type: ignore[assignment]
    exact.steps(0, 6)
    torch.testing.assert_close(training.parameters, exact.parameters, rtol=1e-6, atol=1e-8)


def test_eight_cells_train_a_network_with_one_output_on_batches_of_eight() -> None:
    torch.manual_seed(0)
    model, criterion = nn.Sequential(nn.Linear(20, 30), nn.Tanh(), nn.Linear(30, 1)), nn.MSELoss()
    teacher = nn.Linear(20, 1)
    with connect("inproc:", clock="stepped", cells=8, embedding="sample") as spu, spu.session() as session:
        optimizer = TNGD(model, criterion, session, lr=0.3, damping=0.1, analog_time=50.0)
        losses = []
        for _ in range(40):
            x = torch.randn(8, 20)
            loss = criterion(model(x), teacher(x).detach())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    assert sum(p.numel() for p in model.parameters()) == 661
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("freshness", [NoOlderThan(programs=1), "newest"], ids=["one old", "newest"])
def test_the_device_may_work_while_the_next_gradient_is_computed(name: str, freshness: Any) -> None:
    with connect("inproc:", clock="free", cells=CELLS[name], embedding=name) as spu, spu.session() as session:
        # All steps together stay below one along the first direction, however old the readings are.
        training = Training(session, freshness=freshness, lr=0.03)
        losses = training.steps(0, 25)
        assert sum(losses[-3:]) < sum(losses[:3])


def test_several_readings_and_periodic_ones() -> None:
    results = []
    for options in ({}, {"readings": 3, "spacing": 10.0}, {"period": 450.0, "analog_time": 900.0}):
        with connect("inproc:", clock="stepped", embedding="sample") as spu, spu.session() as session:
            training = Training(session, **options)
            training.steps(0, 3)
            results.append(training.parameters)
    for found in results[1:]:
        torch.testing.assert_close(found, results[0], rtol=1e-6, atol=1e-8)
    with connect("inproc:", rate=1e5, embedding="sample") as spu, spu.session() as session:
        # The first multiple of the period may come before the cells have settled.
        training = Training(session, period=100.0, lr=0.03)
        losses = training.steps(0, 25)
        assert training.optimizer.counts["readings"] >= 25
        assert sum(losses[-3:]) < sum(losses[:3])


def test_what_an_embedding_has_no_way_for_is_refused() -> None:
    with connect("inproc:", clock="stepped", embedding="kronecker") as spu, spu.session() as session:
        with pytest.raises(ValueError, match="Invalid readings: 2; with embedding 'kronecker'"):
            Training(session, readings=2)
        with pytest.raises(ValueError, match=r"Invalid period: 5\.0; with embedding 'kronecker'"):
            Training(session, period=5.0)
        training = Training(session)
        with connect("inproc:", clock="stepped") as other, other.session() as direct:
            with pytest.raises(
                ValueError, match=r"Invalid session: embedding None; it must be Kronecker\(\), as before"
            ):
                training.optimizer.session = direct
            with pytest.raises(ValueError, match=r"Invalid session: embedding Kronecker\(\)"):
                Training(direct).optimizer.session = session


def test_a_batch_with_too_many_rows_is_refused_before_anything_is_sent() -> None:
    with connect("inproc:", cells=ROWS - 1, embedding="sample") as spu, spu.session() as session:
        training = Training(session)
        reason = f'the device has {ROWS - 1} cells for {ROWS} rows of the factor.*curvature="mc" with samples=1'
        with pytest.raises(CurvatureTooLarge, match=reason):
            training.loss(0)
        assert session.uploaded_bytes == 0
    for options, reason in (
        ({"cells": 27, "embedding": "block"}, "the device has 27 cells for 28 parameters of the largest block"),
        ({"cells": 42}, r'42 cells for 43 parameters.*connect\(…, embedding="sample"\)'),
    ):
        with connect("inproc:", **options) as spu, spu.session() as session:  # type: ignore[arg-type]
            training = Training(session)
            with pytest.raises(CurvatureTooLarge, match=reason):
                training.loss(0)
    with connect("inproc:", cells=6, embedding="kronecker") as spu, spu.session() as session:
        training = Training(session)
        training.loss(0).backward()
        with pytest.raises(CapacityExceeded, match="embedding 'kronecker' needs 7 cells"):
            training.optimizer.step()
        assert session.uploaded_bytes == 0


@pytest.mark.parametrize("name", NAMES)
def test_without_its_device_a_step_solves_the_digital_equivalent(name: str) -> None:
    embedding = embedding_of(name)
    assert embedding is not None
    devices = ["inproc:"] if name == "sample" else ["inproc:"] * 2
    with connect(devices, clock="stepped", embedding=name) as spu, spu.session() as session:
        training = Training(session, on_loss="digital")
        training.steps(0, 2)
        spu.halt("a test")
        training.steps(2, 4)
        assert training.optimizer.counts["digital"] == 2
    torch.testing.assert_close(training.parameters, digital(embedding, 4), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("every", [1, 4])
def test_2k_steps_are_k_steps_a_checkpoint_and_k_steps(name: str, every: int) -> None:
    options: dict[str, Any] = {"analog_time": 3.0, "delay": 0.5, "noise": 1e-4, "curvature_every": every}
    devices = ["inproc:"] if name == "sample" else ["inproc:"] * 2

    def trained(first: int, last: int, seed: int, saved: bytes | None = None) -> tuple[Training, bytes]:
        with connect(devices, clock="stepped", seed=seed, embedding=name) as spu, spu.session() as session:
            training = Training(session, **options)
            if saved is not None:
                state = torch.load(io.BytesIO(saved), weights_only=True)
                training.model.load_state_dict(state["model"])
                training.optimizer.load_state_dict(state["optimizer"])
            training.steps(first, last)
            file = io.BytesIO()
            torch.save({"model": training.model.state_dict(), "optimizer": training.optimizer.state_dict()}, file)
            return training, file.getvalue()

    whole, _ = trained(0, 6, seed=0)
    _, saved = trained(0, 3, seed=0)
    second, _ = trained(3, 6, seed=7, saved=saved)
    assert torch.equal(whole.parameters, second.parameters)
