"""Exported ONNX files compute in ONNX Runtime what the models compute."""

import importlib
import itertools
import json

import numpy as np
import pytest
from helpers import ROOT, pictures, script_main
from tiny_prior import tiny_inputs, tiny_pixelcnn

from brainslices.errors import InputError
from brainslices.runs.export import PACKAGES, Export, write_exports

GOLDEN = ROOT / "tests" / "golden"
pytestmark = pytest.mark.slow

if any(importlib.util.find_spec(name) is None for name in PACKAGES):
    pytest.skip('needs ONNX: pip install --editable ".[export]"', allow_module_level=True)


def run_onnx(path, **inputs):
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [value.name for value in session.get_inputs()] == [*inputs]
    (output,) = session.get_outputs()
    (values,) = session.run(None, inputs)
    assert output.shape == ["batch", *values.shape[1:]]
    return values


def export(run, out):
    script_main(ROOT / "scripts" / "export.py")(["--run", str(run), "--out", str(out)])


def test_vqvae(tmp_path, capsys):
    from vqvae.model import VQVAE

    export(GOLDEN / "vqvae_run", tmp_path / "out")
    assert "encoder.onnx  image  (batch, 24, 20, 1)" in capsys.readouterr().out
    model, images = VQVAE.from_run(GOLDEN / "vqvae_run"), pictures(3)
    codes = run_onnx(tmp_path / "out" / "encoder.onnx", image=images)
    np.testing.assert_array_equal(codes, model.encode_to_codes(images))
    decoded = run_onnx(tmp_path / "out" / "decoder.onnx", codes=codes)
    np.testing.assert_allclose(decoded, model.decode_codes(codes), atol=1e-4)


def test_prior(tmp_path):
    from pixelcnn.model import PixelCNN

    export(GOLDEN / "pixelcnn_run", tmp_path / "out")
    model, rng = PixelCNN.from_run(GOLDEN / "pixelcnn_run"), np.random.default_rng(0)
    codes = rng.integers(0, model.num_embeddings, (3, *model.grid_shape), "int32")
    inputs = {"codes": codes, "position": np.float32([0, 0.3, 1])}
    logits = run_onnx(tmp_path / "out" / "prior.onnx", **inputs)
    np.testing.assert_allclose(logits, model(inputs), atol=1e-4)


def test_prior_with_conditions(tmp_path, monkeypatch):
    import onnx

    from pixelcnn.conditions import Variable
    from pixelcnn.model import PixelCNN

    variables = (Variable("age", 40, 80), Variable("sex", categories=("F", "M")))
    model = tiny_pixelcnn(conditions=("age", "sex"), condition_variables=variables)
    model.file_hash = "none"
    monkeypatch.setattr(PixelCNN, "from_run", lambda run: model)
    export(GOLDEN / "pixelcnn_run", tmp_path / "out")
    path = tmp_path / "out" / "prior.onnx"
    positions = model.with_conditions(np.float32([0, 0.5]), {"sex": "M"})
    assert positions.shape == (2, 3)
    inputs = {**tiny_inputs(2), "position": positions}
    np.testing.assert_allclose(run_onnx(path, **inputs), model(inputs), atol=1e-4)
    metadata = {item.key: item.value for item in onnx.load(path).metadata_props}
    stored = json.loads(metadata["condition_variables"])
    assert tuple(Variable(**item) for item in stored) == variables


@pytest.mark.parametrize(("size", "target"), [(176, 208), (144, 176), (49, 7), (10, 10)])
def test_resized_images_have_the_models_size(size, target, tmp_path):
    """A float32 scale of 208 / 176 gives 207 pixels."""
    from keras import ops

    images = pictures(1, (size, size))
    resize = Export(lambda x: ops.image.resize(x, (target, target)), {"x": images}, "y")
    write_exports(tmp_path / "out", {"resize.onnx": resize}, {})
    actual = run_onnx(tmp_path / "out" / "resize.onnx", x=images)
    np.testing.assert_allclose(actual, resize.function(images), atol=1e-4)


def test_a_file_that_differs_from_its_model_in_one_value_is_not_written(tmp_path):
    calls, images = itertools.count(), pictures(1)
    one_pixel = np.zeros_like(images)
    one_pixel[0, 3, 4] = 1
    unstable = Export(lambda x: x + next(calls) * one_pixel, {"x": images}, "y")
    with pytest.raises(RuntimeError, match=r"y\.onnx differs"):
        write_exports(tmp_path / "out", {"y.onnx": unstable}, {})
    assert not (tmp_path / "out").exists()


def test_missing_packages_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr("brainslices.runs.export.PACKAGES", ("onnx", "no_such_package"))
    with pytest.raises(InputError, match=r"no_such_package.*\[export\]"):
        write_exports(tmp_path / "out", {}, {})
