import itertools

import torch
from torch import Tensor, nn

from spu_lab.tasks.task import Examples, Task


def task(n: int = 10) -> Task:
    examples = Examples(torch.arange(n).float().unsqueeze(1), torch.zeros(n, dtype=torch.long))
    return Task(
        name="line",
        outputs=2,
        network=lambda: nn.Linear(1, 2),
        criterion=nn.CrossEntropyLoss(),
        prepare=lambda x: x,
        train=examples,
        validation=examples,
        test=examples,
    )


def test_an_epoch_holds_every_example_once_and_the_next_in_another_order() -> None:
    def inputs(batches: list[tuple[Tensor, Tensor]]) -> list[float]:
        return torch.cat([x for x, _ in batches]).flatten().tolist()

    assert task().batches_per_epoch(4) == 3
    batches = list(itertools.islice(task().batches(4, seed=1), 6))
    assert [len(x) for x, _ in batches] == [4, 4, 2, 4, 4, 2]
    first, second = inputs(batches[:3]), inputs(batches[3:])
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second
    assert inputs(list(itertools.islice(task().batches(4, seed=1), 3))) == first


def test_a_network_depends_on_its_seed_alone() -> None:
    before = torch.random.get_rng_state()
    one, same, other = (task().build(seed).state_dict()["weight"] for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_evaluation_does_not_depend_on_the_chunks_and_keeps_the_mode() -> None:
    line, model = task(), task().build(0).train()
    whole, chunked = line.evaluate(model, line.test), line.evaluate(model, line.test, chunk=3)
    assert abs(whole[0] - chunked[0]) < 1e-5
    assert whole[1] == chunked[1]
    assert model.training
