"""What do all figures share? One look, and names as people write them."""

from __future__ import annotations

import plotly.graph_objects as go

ENCODER_KINDS = ("query", "key", "value", "attention_output", "ffn_in", "ffn_out")


def words(name: str) -> str:
    return name.replace("_", " ").replace("ffn", "FFN")


def styled(figure: go.Figure, height: int, legend: bool = True) -> go.Figure:
    """One look for all; the caller gives the title, since in a report it is a heading."""
    figure.update_layout(
        template="plotly_white",
        height=height,
        font={"family": "system-ui, -apple-system, 'Segoe UI', sans-serif", "size": 13},
        margin={"l": 20, "r": 20, "t": 40, "b": 20},
        showlegend=legend,
        hoverlabel={"align": "left"},
    )
    figure.update_xaxes(automargin=True)
    figure.update_yaxes(automargin=True)
    return figure
