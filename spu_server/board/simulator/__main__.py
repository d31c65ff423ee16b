"""``python -m spu_server.board.simulator`` is ``spu-board-simulator``."""

from spu_server.board.simulator.cli import app

if __name__ == "__main__":
    app()
