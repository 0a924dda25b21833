"""The method of both clients that gives a chart of players."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ipfs_stream_nb.clients.results import hinted_methods

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ipfs_stream_nb.widgets.abr_chart import AbrChart
    from ipfs_stream_nb.widgets.player import Player


@hinted_methods
class ChartMethods:
    """Charts, for which nothing is asked of the server."""

    def chart(
        self, *players: Player | Sequence[Player], seconds: float = 60.0, names: Sequence[str] | None = None
    ) -> AbrChart:
        """A widget that shows how playback follows the network: bit rates, delay, loss, picture, buffer and
        freezes.

        `players`: what `play` gives, or a list of it; `seconds`: the window that is shown, 5 to 3600;
        `names`: of the players, else those of the files. `add_sample` brings other figures. Raises
        BadRequestError for what is no player, and TraitError for a window that is none.
        """
        from ipfs_stream_nb.widgets.abr_chart import AbrChart  # noqa: PLC0415  # only a notebook has widgets

        return AbrChart(*players, seconds=seconds, names=names)
