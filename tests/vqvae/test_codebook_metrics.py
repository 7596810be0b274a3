import numpy as np
import pytest

from vqvae.codebook_metrics import CodebookPerplexity, CodebookUsage

pytestmark = pytest.mark.usefixtures("fresh_keras")


def test_perplexity_is_1_for_one_code_and_the_codebook_size_for_uniform_codes():
    perplexity = CodebookPerplexity(8)
    perplexity.update_state(np.full((2, 5, 5), 3))
    np.testing.assert_allclose(perplexity.result(), 1, rtol=1e-5)
    perplexity.reset_state()
    perplexity.update_state(np.tile(np.arange(8), 4))
    np.testing.assert_allclose(perplexity.result(), 8, rtol=1e-5)


def test_perplexity_and_usage_accumulate_over_an_epoch():
    usage, perplexity = CodebookUsage(8), CodebookPerplexity(8)
    for code in (1, 6):
        for metric in (usage, perplexity):
            metric.update_state(np.full((4, 4), code))
    assert float(usage.result()) == 2 / 8
    np.testing.assert_allclose(perplexity.result(), 2, rtol=1e-5)
    usage.reset_state()
    assert float(usage.result()) == 0
