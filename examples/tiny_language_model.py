"""Train a small language model that computes its loss itself, as nanoGPT does, with TNGD.

    python examples/tiny_language_model.py
    python examples/tiny_language_model.py --optimizer adam

The model is called as ``logits, loss = model(x, y)``. The optimizer is given ``criterion=None``: the curvature is that
of the cross-entropy that the model computes. With ``curvature="mc"`` it has one row for each position, from a next
character drawn from the model's own distribution, however many characters there are.

The text is short and the model, with 6,660 parameters, soon knows it by heart: the loss shows how fast an optimizer
fits, not how well the model writes. Batches are noisy here and a tuned Adam (``--lr 0.02``) is faster; for a problem
where it is the other way round see ``poisson_pinn.py``. Without ``--spu`` a daemon is started in a separate process.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from contextlib import ExitStack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from host_client import TNGD, connect
from spu_lab.local_daemon import local_daemon

TEXT = """shall i compare thee to a summer's day?
thou art more lovely and more temperate:
rough winds do shake the darling buds of may,
and summer's lease hath all too short a date;
sometime too hot the eye of heaven shines,
and often is his gold complexion dimm'd;
and every fair from fair sometime declines,
by chance or nature's changing course untrimm'd;
but thy eternal summer shall not fade,
nor lose possession of that fair thou ow'st;
nor shall death brag thou wander'st in his shade,
when in eternal lines to time thou grow'st:
so long as men can breathe or eyes can see,
so long lives this, and this gives life to thee.
"""
CHARACTERS = sorted(set(TEXT))
CONTEXT, WIDTH, HEADS = 16, 20, 2


class Block(nn.Module):
    """Causal attention and a feed-forward network, each after a layer norm and with a residual connection."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, h: Tensor) -> Tensor:
        """Map (b, s, width) to (b, s, width)."""
        q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in self.qkv(self.first(h)).chunk(3, -1))
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        h = h + self.out(attended.transpose(1, 2).flatten(2))
        return h + self.down(F.gelu(self.up(self.second(h))))


class LanguageModel(nn.Module):
    """A transformer on characters."""

    def __init__(self) -> None:
        super().__init__()
        self.characters, self.positions = nn.Embedding(len(CHARACTERS), WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.block, self.norm = Block(), nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, len(CHARACTERS), bias=False)

    def forward(self, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Return the logits, (b, s, characters), and with targets y, (b, s), the mean loss."""
        h = self.characters(x) + self.positions(torch.arange(x.shape[1], device=x.device))
        logits = self.head(self.norm(self.block(h)))
        return logits, None if y is None else F.cross_entropy(logits.flatten(0, 1), y.flatten())


@torch.no_grad()
def write(model: nn.Module, length: int, generator: torch.Generator) -> str:
    """Return text that the model draws, character by character."""
    model.eval()
    text = [CHARACTERS.index("\n")]
    for _ in range(length):
        logits, _ = model(torch.tensor([text[-CONTEXT:]]))
        text.append(int(torch.multinomial(logits[0, -1].softmax(0), 1, generator=generator)))
    return "".join(CHARACTERS[number] for number in text).strip()


def main(arguments: Sequence[str] | None = None) -> list[float]:
    """Train, and print a sample; return the loss at each step, in nats a character."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--optimizer", choices=("adam", "tngd"), default="tngd")
    parser.add_argument("--spu", help="unix:PATH or HOST:PORT of a daemon, or inproc:; by default one is started")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=32, help="excerpts of 16 characters (default: 32)")
    parser.add_argument("--lr", type=float, help="default: 0.3, of Adam 0.01")
    given = parser.parse_args(arguments)

    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    model, encoded = LanguageModel(), torch.tensor([CHARACTERS.index(character) for character in TEXT])
    losses: list[float] = []
    with ExitStack() as stack:
        optimizer: torch.optim.Optimizer
        if given.optimizer == "adam":
            optimizer = torch.optim.Adam(model.parameters(), lr=given.lr or 0.01)
        else:
            spu = stack.enter_context(connect(given.spu or stack.enter_context(local_daemon())))
            session = stack.enter_context(spu.session(ttl=30.0))
            optimizer = TNGD(
                model,
                None,
                session,
                lr=given.lr or 0.3,
                damping=0.1,
                analog_time=100.0,
                momentum=0.9,
                curvature="mc",
                trust_region=0.1,  # bounds the whole update; without it momentum would lead too far
            )
        begin = time.monotonic()
        for step in range(1, given.steps + 1):
            starts = torch.randint(len(encoded) - CONTEXT, (given.batch_size, 1), generator=generator)
            excerpts = encoded[starts + torch.arange(CONTEXT + 1)]
            _, loss = model(excerpts[:, :-1], excerpts[:, 1:])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            if step == 1 or step % max(given.steps // 10, 1) == 0:
                print(f"step {step:5}  loss {losses[-1]:6.3f}  {time.monotonic() - begin:6.1f} s", flush=True)
    print(write(model, 120, generator))
    return losses


if __name__ == "__main__":
    main()
