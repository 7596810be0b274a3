import numpy as np
import pytest
from tiny_prior import tiny_inputs, tiny_pixelcnn

from pixelcnn.row_cache import RowCache, start_state

pytestmark = pytest.mark.usefixtures("fresh_keras")


@pytest.mark.parametrize(
    "changes",
    [
        {"scan": "raster", "attention_layers": 0},
        {"scan": "turned"},
        {"kernel_size": 5, "first_kernel_size": 3},
        {"kernel_size": 1, "first_kernel_size": 7},
        {"kernel_size": 3, "first_kernel_size": 1},
        {"position_frequencies": 0},
    ],
    ids=str,
)
def test_cached_logits_equal_those_of_the_full_forward_pass(changes):
    grid = (3, 4)
    model, inputs = tiny_pixelcnn(grid, **changes), tiny_inputs(2, grid)
    full = np.asarray(model.to_scan(model(inputs)))
    codes = np.asarray(model.to_scan(inputs["codes"]))
    cache = RowCache(model, inputs["position"])
    vertical_state = start_state(model, 2)
    for row in range(model.scan_shape[0]):
        from_vertical, vertical_state = cache.advance_vertical_stack(row, vertical_state)
        row_state = cache.start_row()
        for col in range(cache.cols):
            logits, row_state = cache.advance_horizontal_stack(
                row, col, from_vertical[:, :, col], row_state
            )
            np.testing.assert_allclose(logits, full[:, row, col], atol=1e-4)
            row_state = cache.append_code(row_state, codes[:, row, col])
        vertical_state = cache.append_row(vertical_state, codes[:, row])
