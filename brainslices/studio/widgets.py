"""Pieces that the tabs of the browser app share."""

import functools
import hashlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

from brainslices.errors import InputError
from brainslices.runs.atomic import atomic_path
from brainslices.studio.engine import Engine
from brainslices.studio.pictures import grey
from brainslices.studio.uploads import Upload, read_upload

__all__ = [
    "OPTIONS",
    "PICTURE",
    "connect_cancel",
    "gallery",
    "pick",
    "picture_file",
    "show_errors",
    "source",
    "table",
]

OPTIONS: dict[str, Any] = {"show_progress": "minimal", "api_visibility": "private"}
PICTURE: dict[str, Any] = {"interactive": False, "format": "png", "buttons": ["fullscreen"]}


def show_errors(function: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    """Show the errors of a generator that the user can fix as the commands print them."""

    @functools.wraps(function)
    def wrapper(*arguments):
        try:
            yield from function(*arguments)
        except InputError as error:
            raise gr.Error(str(error), duration=None, print_exception=False) from error

    return wrapper


def connect_cancel(button: gr.Button, runs: list[Any], status: gr.Markdown) -> None:
    """Cancel runs by a button, and say so when each has ended: until then Gradio drops clicks."""
    button.click(None, cancels=runs, api_visibility="private")
    for run in runs:
        run.failure(lambda: "Stopped.", None, status, api_visibility="private")


def gallery(label: str) -> gr.Gallery:
    """Return an empty gallery of slices."""
    return gr.Gallery(
        label=label,
        columns=4,
        format="png",
        object_fit="contain",
        elem_classes="slices",
        interactive=False,
        buttons=["download", "fullscreen"],
    )


def picture_file(image: np.ndarray) -> Path:
    """Write a slice, float (rows, cols) in [0, 1], as a PNG file named by its content.

    Gradio writes an image anew whenever it is shown again, while a browser may be reading it.
    """
    picture = grey(image)
    name = hashlib.sha256(picture.tobytes()).hexdigest()
    path = Path(tempfile.gettempdir()) / name / "slice.png"
    if not path.exists():
        with atomic_path(path) as temporary:
            picture.save(temporary)
    return path


def source(engine: Engine) -> tuple[gr.State, gr.Slider]:
    """Lay out the choice of a slice: an upload or a slice of the archive.

    Returns:
        The state that holds an `Upload`, and the slider of its slices, which is released when
        another upload is loaded too.
    """
    upload = gr.State(None, time_to_live=3600)
    file = gr.File(label="PNG or NIfTI (.nii, .nii.gz)", height=160, type="filepath")
    split = engine.example_split
    example = gr.Button(f"Take a slice of the {split} split", visible=bool(split))
    seed = gr.State(0)
    number = gr.Slider(0, 1, 0, step=1, label="Slice of the volume", visible=False)

    def slider(read):
        last = len(read.slices) - 1
        return gr.Slider(maximum=max(last, 1), value=last // 2, visible=last > 0)

    @show_errors
    def read_file(path):
        read = read_upload(path, engine.decoder.image_shape)
        yield read, slider(read)

    @show_errors
    def take_example(seed):
        read = engine.example(seed)
        yield read, slider(read), seed + 1

    file.upload(read_file, file, [upload, number], **OPTIONS)
    example.click(take_example, seed, [upload, number, seed], **OPTIONS)
    return upload, number


def pick(upload: Upload | None, number: int) -> np.ndarray:
    """Return the slice of an upload, uint8 of shape (rows, cols).

    Raises:
        InputError: if there is no upload.
    """
    if upload is None:
        raise InputError("There is no slice yet. Upload one, or take one of the test split.")
    return upload.slices[min(int(number), len(upload.slices) - 1)]


def table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """Return a Markdown table."""
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
