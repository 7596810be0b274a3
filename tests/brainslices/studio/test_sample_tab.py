import pytest

pytest.importorskip("gradio", reason='needs Gradio: pip install --editable ".[studio]"')

import gradio as gr

from brainslices.studio.sample_tab import _condition
from pixelcnn.conditions import Variable


@pytest.mark.parametrize(("low", "high", "middle"), [(0.64, 0.9, 0.77), (18.0, 97.0, 57.0)])
def test_number_of_a_condition_starts_within_its_range(low, high, middle):
    with gr.Blocks():
        _, value = _condition(Variable("nWBV", low, high))
    assert (value.minimum, value.maximum) == (low, high)
    assert value.value == pytest.approx(middle)
