"""The tab that samples novel slices."""

import tempfile
import zipfile
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

from brainslices.studio.engine import BATCH, Engine, Sampling
from brainslices.studio.pictures import grey
from brainslices.studio.widgets import connect_cancel, gallery, picture_file, show_errors

__all__ = ["sample_tab", "write_downloads"]

UNKNOWN = "unknown"


def sample_tab(engine: Engine) -> None:
    """Lay out the tab and connect its events."""
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            low, high = engine.prior.provenance.positions
            position = gr.Slider(
                low, high, (low + high) / 2, step=0.01, label="Position, 0 lowest to 1 highest"
            )
            variables = engine.prior.model.condition_variables
            conditions = [part for variable in variables for part in _condition(variable)]
            guidance = gr.Slider(
                0, 4, 1, step=0.1, label="Guidance by conditions, 1 is off", visible=bool(variables)
            )
            with gr.Row():
                temperature = gr.Slider(0.1, 1.5, 1.0, step=0.05, label="Temperature")
                top_p = gr.Slider(0.05, 1.0, 1.0, step=0.05, label="Top-p")
            with gr.Row():
                count = gr.Slider(1, BATCH, min(4, BATCH), step=1, label="Count")
                seed = gr.Number(0, minimum=0, precision=0, label="Seed")
            start = gr.Button("Sample", variant="primary")
            strip = gr.Button("Same seed at every position")
            cancel = gr.Button("Cancel", variant="stop")
        with gr.Column(scale=3, min_width=320):
            status = gr.Markdown("Choose a position and press *Sample*.", elem_classes="status")
            samples = gallery("Samples")
            nearest = gallery("Nearest training slice of each")
            with gr.Row():
                png = gr.DownloadButton("Download PNGs", interactive=False)
                npz = gr.DownloadButton("Download NPZ", interactive=False)
    inputs = [position, temperature, top_p, guidance, count, seed, *conditions]
    outputs = [status, samples, nearest, png, npz]
    options: dict[str, Any] = {"concurrency_limit": 2, "concurrency_id": "sample"}
    options |= {"show_progress": "hidden", "api_visibility": "private"}
    runs: Any = [
        button.click(_sampler(engine, variables, shared), inputs, outputs, **options)
        for button, shared in ((start, False), (strip, True))
    ]
    connect_cancel(cancel, runs, status)


def _condition(variable):
    """Return the inputs of a condition: the value of a category, or a switch and a number."""
    if variable.categories:
        choices = [UNKNOWN, *variable.categories]
        return [gr.Dropdown(choices, value=UNKNOWN, label=variable.name)]
    low, high = variable.low, variable.high
    is_whole = low == int(low) and high == int(high) and high - low >= 10
    step = 1 if is_whole else (high - low) / 100
    with gr.Row():
        known = gr.Checkbox(False, label=f"{variable.name} is known", min_width=120)
        middle = (low + high) // 2 if is_whole else (low + high) / 2
        value = gr.Slider(low, high, middle, step=step, label=variable.name)
    return [known, value]


def requested(variables: tuple, values: tuple) -> dict[str, object]:
    """Return the known conditions by name, given the values of their inputs."""
    conditions, left = {}, list(values)
    for variable in variables:
        known = True if variable.categories else left.pop(0)
        value = left.pop(0)
        if known and value != UNKNOWN:
            conditions[variable.name] = value
    return conditions


def _sampler(engine, variables, is_strip):
    low, high = engine.prior.provenance.positions

    @show_errors
    def sample(position, temperature, top_p, guidance, count, seed, *values):
        options = {
            "temperature": temperature,
            "top_p": None if top_p == 1 else top_p,
            "guidance": guidance,
            "seed": int(seed),
            "conditions": requested(variables, values),
            "shared_noise": is_strip,
        }
        if is_strip:
            count, position = BATCH, tuple(np.linspace(low, high, BATCH))
        for sampling in engine.sample(int(count), position, **options):
            off = gr.DownloadButton(interactive=False)
            yield _status(sampling), _pictures(sampling), [], off, off
        files = (
            gr.DownloadButton(value=str(path), interactive=True)
            for path in write_downloads(sampling)
        )
        nearest = [(picture_file(image), text) for image, text in engine.nearest_slices(sampling)]
        yield _status(sampling), _pictures(sampling), nearest, *files

    return sample


def _status(sampling: Sampling) -> str:
    if sampling.share < 1:
        return f"Sampling: {sampling.share:.0%} of the codes."
    grids = sampling.codes
    return (
        f"{len(grids)} slices of {grids[0].size} codes, {sampling.bits.mean():,.0f} bits each on "
        "average under the prior."
    )


def _pictures(sampling: Sampling) -> list:
    captions = [f"position {position:.2f}" for position in sampling.positions]
    if sampling.share == 1:
        pairs = zip(captions, sampling.bits, strict=True)
        captions = [f"{caption}, {bits:,.0f} bits" for caption, bits in pairs]
    images = map(picture_file, sampling.images)
    return list(zip(images, captions, strict=True))


def write_downloads(sampling: Sampling) -> tuple[Path, Path]:
    """Write a zip of PNGs, and an NPZ with `images`, `codes`, `log_prob` and `positions`."""
    folder = Path(tempfile.mkdtemp())
    png, npz = folder / "slices.zip", folder / "slices.npz"
    with zipfile.ZipFile(png, "w") as file:
        for index, image in enumerate(sampling.images):
            position = sampling.positions[index]
            with file.open(f"sample_{index:04d}_position_{position:.3f}.png", "w") as stream:
                grey(image).save(stream, "PNG")
    names = ("images", "codes", "log_prob", "positions")
    np.savez(npz, **{name: getattr(sampling, name) for name in names})
    return png, npz
