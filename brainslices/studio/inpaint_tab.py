"""The tab that fills in a painted part of a slice."""

from typing import Any

import gradio as gr

from brainslices.studio.engine import Engine
from brainslices.studio.pictures import grey, hidden_mask
from brainslices.studio.widgets import (
    OPTIONS,
    connect_cancel,
    gallery,
    pick,
    picture_file,
    show_errors,
    source,
)

__all__ = ["inpaint_tab"]


def inpaint_tab(engine: Engine) -> None:
    """Lay out the tab and connect its events."""
    rows, cols = engine.decoder.image_shape
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            upload, number = source(engine)
            count = gr.Slider(1, 8, 4, step=1, label="Count")
            seed = gr.Number(0, minimum=0, precision=0, label="Seed")
            start = gr.Button("Fill in", variant="primary")
            cancel = gr.Button("Cancel", variant="stop")
            status = gr.Markdown("Paint over the part to fill in.", elem_classes="status")
        with gr.Column(scale=2, min_width=320):
            editor = _editor((cols, rows))
            inpainted = gallery("Inpainted slices")

    @show_errors
    def show(upload, number):
        background = grey(pick(upload, number) / 255)
        yield {"background": background, "layers": [], "composite": None}

    @show_errors
    def fill_in(upload, number, drawing, count, seed):
        image = pick(upload, number)
        layers = drawing["layers"] if drawing else []
        count, shown = int(count), []
        yield f"Filling in: 0 of {count}.", shown
        hidden = hidden_mask(layers, image.shape)
        for images in engine.inpaint(image, hidden, count, int(seed)):
            shown = [(picture_file(one), f"inpainted {k + 1}") for k, one in enumerate(images)]
            yield f"Filling in: {len(shown)} of {count}.", shown
        yield f"{count} inpainted slices. Only the painted part and its codes are new.", shown

    triggers = [upload.change, number.input]
    gr.on(triggers, show, [upload, number], editor, trigger_mode="always_last", **OPTIONS)
    inputs, outputs = [upload, number, editor, count, seed], [status, inpainted]
    run: Any = start.click(
        fill_in, inputs, outputs, concurrency_limit=2, concurrency_id="sample", **OPTIONS
    )
    connect_cancel(cancel, [run], status)


def _editor(canvas_size):
    return gr.ImageEditor(
        label="Slice: paint over the part to fill in",
        elem_id="inpaint-editor",
        canvas_size=canvas_size,
        fixed_canvas=True,
        sources=(),
        transforms=(),
        layers=False,
        type="numpy",
        image_mode="RGBA",
        format="png",
        brush=gr.Brush(24, colors=["#e5484d"], color_mode="fixed"),
        buttons=[],
        height=440,
    )
