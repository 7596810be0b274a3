"""The tab that shows where a slice is unlike the training slices."""

from typing import Any

import gradio as gr

from brainslices.studio.engine import Engine
from brainslices.studio.pictures import overlay
from brainslices.studio.widgets import OPTIONS, connect_cancel, pick, show_errors, source
from brainslices.visualization.html import comparison, picture_url

__all__ = ["surprise_tab"]

SLICE = '<img src="{}" alt="original" style="width: 100%">'
HINT = "Upload a slice to see where it is unlike the slices that the prior was trained on."


def surprise_tab(engine: Engine) -> None:
    """Lay out the tab and connect its events."""
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            upload, number = source(engine)
            status = gr.Markdown(HINT, elem_classes="status")
            cancel = gr.Button("Cancel", variant="stop")
        with gr.Column(scale=2, min_width=320):
            shown = gr.HTML()

    @show_errors
    def score(upload, number):
        image = pick(upload, number)
        if not engine.has_reference:
            original = SLICE.format(picture_url(engine.crop.cut(image[None])[0]))
            yield "Scoring the validation slices first, once: about half a minute.", original
        result = engine.surprise(image)
        drawn = overlay(result.original, result.values, result.highest)
        yield (
            f"{result.bits:,.0f} bits under the prior, percentile {result.percentile:.0f} of the "
            f"validation slices near position {result.position:.2f}.\n\nBright: codes that cost "
            "more than validation codes at that place and slice position.",
            comparison("original", result.original, "surprise", drawn),
        )

    run: Any = gr.on(
        [upload.change, number.input],
        score,
        [upload, number],
        [status, shown],
        trigger_mode="always_last",
        **OPTIONS,
    )
    connect_cancel(cancel, [run], status)
