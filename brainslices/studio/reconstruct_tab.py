"""The tab that reconstructs a slice and edits its codes."""

import gradio as gr

from brainslices.studio.engine import Engine
from brainslices.studio.pictures import cell_at, code_grid, similarity
from brainslices.studio.widgets import OPTIONS, PICTURE, pick, show_errors, source, table
from brainslices.visualization.html import comparison

__all__ = ["reconstruct_tab"]


def reconstruct_tab(engine: Engine) -> None:
    """Lay out the tab and connect its events."""
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            upload, number = source(engine)
            scores = gr.Markdown("Upload a slice to reconstruct it.", elem_classes="status")
        with gr.Column(scale=1, min_width=280):
            slider = gr.HTML()
            ssim_map = gr.Image(label="SSIM map: yellow 1, dark blue 0", **PICTURE)
        with gr.Column(scale=1, min_width=280):
            avif = gr.HTML()
    reconstruction = gr.State(None, time_to_live=3600)
    codes, cell = _editor(engine, reconstruction)

    @show_errors
    def reconstruct(upload, number):
        result = engine.reconstruct(pick(upload, number))
        pair = "original", result.original, "reconstruction", result.image
        common = {reconstruction: result, codes: result.codes, cell: (0, 0)}
        common |= {slider: _compared(engine, *pair)}
        common |= {ssim_map: similarity(_cut(engine, result.similarity))}
        yield {**common, scores: _report(engine, result), avif: ""}
        bits = engine.prior_bits(result.codes)
        yield {scores: _report(engine, result, bits)}
        coded = engine.avif(result.original)
        pair = "reconstruction", result.image, "AVIF at the same bits", coded[0]
        yield {scores: _report(engine, result, bits, coded), avif: _compared(engine, *pair)}

    outputs = [reconstruction, codes, cell, slider, ssim_map, scores, avif]
    gr.on(
        [upload.change, number.input],
        reconstruct,
        [upload, number],
        outputs,
        trigger_mode="always_last",
        **OPTIONS,
    )


def _editor(engine, reconstruction):
    """Lay out the editor of codes; return the states of its codes and of the selected cell."""
    last_code = engine.prior.model.num_embeddings - 1
    codes, cell = gr.State(None, time_to_live=3600), gr.State((0, 0))
    grid, row, col, code, change, reset, message, edited = _editor_layout(engine, last_code)

    def draw(codes, cell):
        if codes is None:
            return None, 0, 0, 0
        picture = code_grid(codes, last_code + 1, cell)
        return picture, cell[0], cell[1], int(codes[cell])

    def select(event: gr.SelectData) -> tuple[int, int]:
        x, y = event.index
        return cell_at(x, y, engine.decoder.code_grid_shape)

    @show_errors
    def apply(result, codes, row, col, code):
        if result is None:
            pick(None, 0)
        changed = engine.edited(codes, (row, col), code)
        yield changed, (int(row), int(col)), *_change(engine, result, changed)

    def undo(result):
        return None if result is None else result.codes, "", ""

    changes = [codes.change, cell.change]
    gr.on(
        changes, draw, [codes, cell], [grid, row, col, code], trigger_mode="always_last", **OPTIONS
    )
    grid.select(select, None, cell, **OPTIONS)
    inputs = [reconstruction, codes, row, col, code]
    change.click(apply, inputs, [codes, cell, edited, message], **OPTIONS)
    reset.click(undo, reconstruction, [codes, edited, message], **OPTIONS)
    return codes, cell


def _editor_layout(engine, last_code):
    rows, cols = engine.decoder.code_grid_shape
    gr.Markdown("## Edit codes\nClick a cell of the grid, or give its row and column.")
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            grid = gr.Image(label="Code grid", elem_id="code-grid", **PICTURE)
        with gr.Column(scale=1, min_width=200):
            with gr.Row():
                row, col = (
                    gr.Number(
                        0, minimum=0, maximum=side - 1, precision=0, label=label, min_width=90
                    )
                    for side, label in ((rows, "Row"), (cols, "Column"))
                )
            code = gr.Slider(0, last_code, 0, step=1, label="Code")
            change = gr.Button("Change the code", variant="primary")
            reset = gr.Button("Undo all changes")
            message = gr.Markdown(elem_classes="status")
        with gr.Column(scale=1, min_width=280):
            edited = gr.HTML()
    return grid, row, col, code, change, reset, message, edited


def _change(engine, result, codes):
    """Return the reconstruction before and after, and what has changed in words."""
    after = engine.compare(result.original, codes)
    pixels = int((abs(after.image - result.image) > 1 / 255).sum())
    before, now = result.scores["ssim_foreground"], after.scores["ssim_foreground"]
    text = (
        f"{(codes != result.codes).sum()} codes and {pixels:,} pixels changed, ssim_foreground "
        f"{before:.4f} to {now:.4f}."
    )
    return _compared(engine, "before", result.image, "after", after.image), text


def _cut(engine, image):
    return engine.crop.cut(image[None])[0]


def _compared(engine, left, before, right, after):
    return comparison(left, _cut(engine, before), right, _cut(engine, after))


def _report(engine, result, prior=None, avif=None):
    """Return the scores and rates as a Markdown table; "..." stands for what is not there yet."""
    pending = ("...",) * 3
    rate = engine.decoder.bits_per_pixel_raw
    under_prior = ("...", "...") if prior is None else _rates(prior[0], engine.pixels)
    coded = pending if avif is None else _scores(avif[2])
    avif_rate = ("...", "...") if avif is None else _rates(avif[1] * engine.pixels, engine.pixels)
    rows = [
        ("ssim", _scores(result.scores)[0], coded[0]),
        ("ssim_foreground", _scores(result.scores)[1], coded[1]),
        ("PSNR, dB", _scores(result.scores)[2], coded[2]),
        ("bits, raw", _rates(rate * engine.pixels, engine.pixels)[0], avif_rate[0]),
        ("bits per pixel, raw", f"{rate:.4f}", avif_rate[1]),
        ("bits under the prior", under_prior[0], ""),
        ("bits per pixel under the prior", under_prior[1], ""),
    ]
    text = table(("measure", "codes", "AVIF"), rows)
    return text if prior is None else f"{text}\n\nLikeliest position: {prior[1]:.2f}"


def _scores(scores):
    return (
        f"{scores['ssim']:.3f}",
        f"{scores['ssim_foreground']:.3f}",
        f"{scores['psnr_db']:.1f}",
    )


def _rates(bits, pixels):
    return f"{bits:,.0f}", f"{bits / pixels:.4f}"
