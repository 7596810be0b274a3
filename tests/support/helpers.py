"""What several test files share: tiny configurations, the layer check, processes of their own."""

import contextlib
import csv
import dataclasses
import importlib.util
import io
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

import pixelcnn.config
import vqvae.config

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "train_vqvae.py"
GREY = np.arange(12 * 10, dtype=np.uint8).reshape(12, 10)


def save_image(path, pixels=GREY, mode=None):
    """Write a picture, in the format that its name tells."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(path)
    return path


def tiny_config(**changes):
    """The default VQ-VAE, made small enough for a test."""
    small = {
        "channels": (8, 16),
        "encoder_blocks": 1,
        "decoder_blocks": 1,
        "num_embeddings": 32,
        "embedding_dim": 4,
    }
    if changes.get("codebook") == "gradient":
        small["restart_threshold"] = 0.0
    return dataclasses.replace(vqvae.config.PRESETS["default"].model, **{**small, **changes})


def tiny_training(**changes):
    """The default training, short, in arithmetic that every machine has."""
    short = {"epochs": 2, "batch_size": 8, "warmup_steps": 2, "precision": "float32"}
    return dataclasses.replace(vqvae.config.PRESETS["default"].training, **{**short, **changes})


def tiny_model(image_shape=(24, 20), crop=(2, -3, 16, 24), seed=0, **changes):
    """A built, untrained model; its crop overhangs the picture on both sides."""
    from vqvae.model import VQVAE

    config = dataclasses.asdict(tiny_config(**changes))
    model = VQVAE(image_shape, crop, mean=0.2, std=0.25, seed=seed, **config)
    model.build((None, *image_shape, 1))
    return model


def scatter_codes(model):
    """Spread an untrained model's codes over its latents, so that many are used."""
    latents = np.asarray(model.encode(pictures(8))).reshape(-1, model.config.embedding_dim)
    rows = np.random.default_rng(0).choice(len(latents), model.config.num_embeddings, replace=False)
    model.quantizer._assign_codebook(latents[rows])
    return model


def tiny_prior_config(**changes):
    """The default prior, made small enough for a test."""
    small = {
        "channels": 8,
        "layers": 2,
        "first_kernel_size": 5,
        "condition_width": 8,
        "position_frequencies": 3,
        "head_width": 16,
    }
    return dataclasses.replace(pixelcnn.config.PRESETS["default"].model, **{**small, **changes})


def tiny_prior_training(**changes):
    """The default training of a prior, short, in arithmetic that every machine has."""
    short = {"epochs": 2, "batch_size": 8, "warmup_steps": 2, "precision": "float32", "variants": 1}
    return dataclasses.replace(pixelcnn.config.PRESETS["default"].training, **{**short, **changes})


def pictures(count, image_shape=(24, 20), seed=0):
    """Random pictures, float32 of shape (count, rows, cols, 1) in [0, 1]."""
    return np.random.default_rng(seed).random((count, *image_shape, 1), "float32")


def csv_rows(path):
    """Read the rows of a CSV file, each as a dict of text."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def normal(*shape, seed=0):
    """Standard normal noise, float32."""
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def values(variables):
    """Copies of variables, for a comparison to the last bit."""
    return [np.asarray(variable).copy() for variable in variables]


def reference_scores(original, image):
    """Compute (ssim, ssim_foreground, map of the SSIM) by scikit-image, as they are reported."""
    from skimage.metrics import structural_similarity

    ssim, similarity = structural_similarity(
        original.astype("float64"),
        image.astype("float64"),
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=1,
        full=True,
    )
    return ssim, similarity[original > 0.02].mean(), similarity


def assert_bit_equal(first, second):
    """Two lists of arrays hold the same bits."""
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)


def check_layer(layer, inputs, folder):
    """What every layer owes Keras, whatever it computes.

    Its configuration builds an equal one; its shape is known before it runs; it trains a step; it
    runs in mixed precision; saved and loaded it gives the same output.
    """
    import keras

    config = layer.get_config()
    assert type(layer).from_config(config).get_config() == config

    symbolic = keras.Input(inputs.shape[1:])
    shapes = [output.shape for output in layer(inputs)]
    assert list(layer.compute_output_shape(inputs.shape)) == shapes
    model = keras.Model(symbolic, layer(symbolic)[0])
    output = np.asarray(model(inputs))
    assert model.output_shape[1:] == output.shape[1:]

    model.compile("sgd", "mse")
    model.fit(inputs, output, batch_size=len(inputs), verbose=0)

    path = folder / "layer.keras"
    model.save(path)
    loaded = keras.saving.load_model(path)
    assert_bit_equal(values(model.weights), values(loaded.weights))
    np.testing.assert_array_equal(model(inputs), loaded(inputs))

    keras.mixed_precision.set_dtype_policy("mixed_bfloat16")
    mixed = type(layer).from_config({**config, "dtype": "mixed_bfloat16", "name": "mixed"})
    assert np.isfinite(np.asarray(mixed(inputs)[0])).all()
    keras.mixed_precision.set_dtype_policy("float32")


def environment(**changes):
    """Environment of a process that imports from the repository."""
    # What JAX has compiled once serves every process of every test.
    kept = {
        "JAX_COMPILATION_CACHE_DIR": str(
            Path(tempfile.gettempdir()) / f"brainslices-tests-jax-{os.getuid()}"
        ),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        # Compiling tiny models takes longer than running them.
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
    }
    own = {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "scripts")]),
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    return {**os.environ, **kept, **own, **changes}


def python(*words, timeout=120, **changes):
    """Run Python to its end in a process of its own: its CompletedProcess, with text."""
    return subprocess.run(
        [sys.executable, *map(str, words)],
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=ROOT,
        env=environment(**changes),
    )


def start(*words, **options):
    """Start Python in a process of its own."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(
        [sys.executable, *map(str, words)],
        text=True,
        **{"cwd": ROOT, "env": environment(), **pipes, **options},
    )


def script_main(path=SCRIPT):
    """The `main` of a script, to call in this process."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up to resolve annotations.
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module.main


def run_command(path, *words):
    """Run a script's command in this process, as in one of its own; return its exit status."""
    from brainslices import cli

    main = script_main(path)
    try:
        return cli.run(lambda: main([str(word) for word in words]))
    except SystemExit as stop:  # of the parser
        return stop.code or 0


def captured_command(path, *words):
    """Run a command in this process; return its exit status, stdout and stderr."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = run_command(path, *words)
    return status, out.getvalue(), err.getvalue()


def error_line(path, *words):
    """Run a command that must fail by a message of one line; return the message."""
    status, out, err = captured_command(path, *words)
    assert (status, out) == (2, ""), err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err


@contextlib.contextmanager
def no_new_files(folder):
    """Check that a folder holds the same files after the block as before."""
    before = sorted(folder.rglob("*"))
    yield
    assert sorted(folder.rglob("*")) == before


def flags(config):
    """The command line words of a configuration."""
    words = []
    for name, value in dataclasses.asdict(config).items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        elif isinstance(value, tuple | list):
            words += [f"--{flag}", *map(str, value)]
        else:
            words += [f"--{flag}", str(value)]
    return words
